#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

namespace dkn {

class DisjointSets {
public:
    explicit DisjointSets(std::int64_t n)
        : parents_(static_cast<std::size_t>(n)), sizes_(static_cast<std::size_t>(n), 1) {
        std::iota(parents_.begin(), parents_.end(), 0);
    }

    std::int32_t find(std::int32_t x) {
        while (parent(x) != x) {
            parent(x) = parent(parent(x));
            x = parent(x);
        }
        return x;
    }

    // Unites two roots and returns the root of both.
    std::int32_t unite(std::int32_t a, std::int32_t b) {
        if (size(a) < size(b)) {
            std::swap(a, b);
        }
        parent(b) = a;
        sizes_[static_cast<std::size_t>(a)] += size(b);
        return a;
    }

    std::int32_t size(std::int32_t root) const { return sizes_[static_cast<std::size_t>(root)]; }

private:
    std::int32_t& parent(std::int32_t x) { return parents_[static_cast<std::size_t>(x)]; }

    std::vector<std::int32_t> parents_;
    std::vector<std::int32_t> sizes_;
};

}  // namespace dkn
