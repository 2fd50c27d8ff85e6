#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "edge.hpp"

namespace dkn {

// The H0 merge forest of a Vietoris-Rips filtration of n points. Nodes 0 ... n - 1 are the points;
// node n + k is merge k. Merges ascend in height, ties in the order of the edges that caused them.
// There are n minus (connected components) of them.
struct MergeTree {
    std::int64_t n = 0;
    std::vector<std::array<std::int32_t, 2>> children;
    std::vector<double> heights;
    std::vector<std::int32_t> sizes;
};

// Kruskal's algorithm, for sparse input. Edges join points i < j; infinite ones never merge.
MergeTree merge_edges(std::int64_t n, std::vector<Edge> edges);

// Prim's algorithm in O(n^2), for a dense symmetric matrix [n, n] whose diagonal is not read.
MergeTree merge_dense(const double* distances, std::int64_t n);

// Throws std::invalid_argument unless the matrix is symmetric and free of nan and negative numbers.
void check_distances(const double* distances, std::int64_t n);

// Throws std::invalid_argument unless 0 <= i < j < n and values are neither nan nor negative.
void check_edges(std::int64_t n, const std::vector<Edge>& edges);

}  // namespace dkn
