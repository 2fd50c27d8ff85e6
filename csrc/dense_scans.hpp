#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu_targets.hpp"
#include "edge.hpp"

namespace dkn {

constexpr double infinity = std::numeric_limits<double>::infinity();

// For each point outside Prim's tree the shortest edge found so far to a point of the tree: its
// length and that point. A point of the tree has length nan, with which every comparison is false.
struct Links {
    std::vector<double> lengths;
    std::vector<std::int32_t> from;

    explicit Links(std::int64_t n)
        : lengths(static_cast<std::size_t>(n), infinity), from(static_cast<std::size_t>(n), 0) {}

    std::int64_t size() const { return static_cast<std::int64_t>(lengths.size()); }

    // Takes an edge to the point that has just joined. Of two equally long edges to one point, the
    // one from the smaller point comes first in the total order, whichever side they lie on.
    void offer(std::int64_t k, double value, std::int32_t joined) {
        double& length = lengths[static_cast<std::size_t>(k)];
        std::int32_t& origin = from[static_cast<std::size_t>(k)];
        if (value < length || (value == length && joined < origin)) {
            length = value;
            origin = joined;
        }
    }

    Edge edge(std::int64_t k) const {
        const auto at = static_cast<std::size_t>(k);
        return make_edge(lengths[at], static_cast<std::int32_t>(k), from[at]);
    }
};

// Updates links [first, n) with the row of the point that has just joined; returns the least of
// their lengths.
inline double relax_from(std::int64_t first, Links& links, const double* row, std::int32_t joined) {
    double least = infinity;
    for (std::int64_t k = first; k < links.size(); ++k) {
        links.offer(k, row[k], joined);
        least = std::min(least, links.lengths[static_cast<std::size_t>(k)]);
    }
    return least;
}

// The first in the total order of `before` and the links [first, n) of this length.
inline Edge first_link_from(std::int64_t first, const Links& links, double length, Edge before) {
    for (std::int64_t k = first; k < links.size(); ++k) {
        if (links.lengths[static_cast<std::size_t>(k)] == length) {
            before = std::min(before, links.edge(k));
        }
    }
    return before;
}

constexpr Edge no_edge{infinity, 0, 0};

// Updates all links with the row of the point that has just joined; returns the first of them in
// the total order, of infinite length if there is none.
using Relax = Edge (*)(Links&, const double*, std::int32_t);

// The fastest such function of this processor. All of them give the same edge.
Relax best_relax();

// Rows, or columns, [first, last) of a matrix.
struct Range {
    std::int64_t first;
    std::int64_t last;
};

// Whether all pairs i < j of the block are symmetric, 0 or more and not nan.
using IsValidBlock = bool (*)(const double* distances, std::int64_t n, Range rows, Range cols);

bool is_valid_block(const double* distances, std::int64_t n, Range rows, Range cols);

// The fastest such function of this processor.
IsValidBlock best_is_valid_block();

#ifdef DKN_HAS_X86_TARGETS
// For processors that have AVX2.
Edge relax_avx2(Links& links, const double* row, std::int32_t joined);
bool is_valid_block_avx2(const double* distances, std::int64_t n, Range rows, Range cols);
#endif

}  // namespace dkn
