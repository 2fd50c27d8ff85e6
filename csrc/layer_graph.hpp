#pragma once

#include <cstdint>
#include <vector>

#include "edge.hpp"
#include "rows.hpp"

namespace dkn {

// View of located neurons, int32 [n, 2] with columns layer and index.
struct Neurons {
    const std::int32_t* data;
    std::int64_t n;

    std::int32_t layer(std::int64_t i) const { return data[2 * i]; }
    std::int32_t index(std::int64_t i) const { return data[2 * i + 1]; }
};

// Distances to whatever number of layers; see layer_distances.
constexpr std::int64_t no_max_span = 0;

// Throws std::invalid_argument unless the neurons are distinct and not negative, and both matrices
// hold n finite rows of one width.
template <typename T>
void check_layer_graph(Neurons neurons, Rows<T> w_out, Rows<T> w_in);

// The finite edges between located neurons in adjacent layers, with distance
// |1 / (w_out[a] . w_in[b])| for a in layer l and b in layer l + 1. Dots are accumulated in double
// in the order of the columns, so an edge's value depends on its two rows only.
template <typename T>
std::vector<Edge> adjacent_edges(Neurons neurons, Rows<T> w_out, Rows<T> w_in);

// Writes the distance matrix [n, n]: 0 on the diagonal, infinity within a layer; between layers the
// shortest path through located neurons, one in each layer between, at most max_span layers apart.
// Lengths are summed from the lowest layer upwards. Unless null, previous [n, n] receives at
// [a, b], for every finite distance to a b in a higher layer, the neuron just before b on the way
// up from a (of several as short the first), and -1 elsewhere. The way to it is the way of its own
// entry [a, previous].
template <typename T>
void layer_distances(Neurons neurons, Rows<T> w_out, Rows<T> w_in, std::int64_t max_span,
                     double* distances, std::int32_t* previous);

}  // namespace dkn
