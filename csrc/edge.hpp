#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <tuple>

namespace dkn {

// An edge of the distance graph between the points i < j.
struct Edge {
    double value;
    std::int32_t i;
    std::int32_t j;
};

// The one total order on edges. Being strict, it makes the minimum spanning forest unique, so that
// every algorithm below returns the same merge tree, ties included.
inline bool operator<(const Edge& a, const Edge& b) {
    return std::tie(a.value, a.i, a.j) < std::tie(b.value, b.i, b.j);
}

inline Edge make_edge(double value, std::int32_t a, std::int32_t b) {
    return {value, std::min(a, b), std::max(a, b)};
}

// The distance that a connection weight stands for: infinite for a weight of 0.
inline double to_distance(double weight) {
    if (std::isnan(weight)) {
        throw std::invalid_argument(
            "w_out and w_in must have finite dot products; got an overflow to nan");
    }
    return std::abs(1.0 / weight);
}

// Node numbers reach 2n - 2 and are stored in 32 bits.
constexpr std::int64_t max_points = std::int64_t{1} << 30;

}  // namespace dkn
