#pragma once

#include <cstdint>
#include <vector>

#include "disjoint_sets.hpp"
#include "dots.hpp"
#include "edge.hpp"
#include "merge_tree.hpp"
#include "rows.hpp"

namespace dkn {

// The shortest edges found so far of some points, at most `capacity` of each in their total order.
class NearestLists {
public:
    explicit NearestLists(std::int64_t capacity) : capacity_(static_cast<std::size_t>(capacity)) {}

    std::int64_t capacity() const { return static_cast<std::int64_t>(capacity_); }
    void resize(std::int64_t n);
    void clear(std::int64_t v);
    void offer(std::int64_t v, double value, std::int32_t other);
    // No edge of a smaller absolute weight can enter the list of v.
    double least_weight(std::int64_t v) const {
        return least_weights_[static_cast<std::size_t>(v)];
    }
    void set_least_weight(std::int64_t v, double weight);

    std::int64_t size(std::int64_t v) const { return sizes_[static_cast<std::size_t>(v)]; }
    bool is_full(std::int64_t v) const { return size(v) == static_cast<std::int64_t>(capacity_); }
    double value(std::int64_t v, std::int64_t k) const { return values_[at(v, k)]; }
    std::int32_t other(std::int64_t v, std::int64_t k) const { return others_[at(v, k)]; }
    Edge edge(std::int64_t v, std::int64_t k) const;

private:
    std::size_t at(std::int64_t v, std::int64_t k) const {
        return static_cast<std::size_t>(v) * capacity_ + static_cast<std::size_t>(k);
    }

    std::size_t capacity_;
    std::vector<double> values_;
    std::vector<std::int32_t> others_;
    std::vector<std::int32_t> sizes_;
    std::vector<double> least_weights_;
};

// A connection between adjacent layers: its edge and its weight with the sign.
struct Connection {
    Edge edge;
    double weight;

    bool operator<(const Connection& other) const { return edge < other.edge; }
};

// What is known of the connections between a layer and the next one.
struct PairSummary {
    std::vector<Connection> strongest;
    // Sum of the absolute weights.
    double total = 0.0;
};

// Minimum spanning forest of all neurons of a stack of layers, where every neuron is joined to
// every one of the next layer, without holding the edges: Boruvka's algorithm on each point's few
// shortest edges to other components.
//
// In a pass over the pairs of adjacent layers the lists of the points that need it are filled
// anew; every edge that is left out of a full list comes after all that are in it. contract() then
// joins components along their shortest edges for as long as the lists prove that they are the
// shortest; the largest component never has to know its own. Each pass at least halves the number
// of the others that are not complete, and usually one does nearly all. Points are numbered layer
// after layer.
//
// Not for several threads at a time; scan() starts its own.
class ModelForest {
public:
    // Throws std::invalid_argument unless list_length is at least 1 and n_strongest at least 0.
    ModelForest(std::int64_t list_length, std::int64_t n_strongest);

    // Throws std::invalid_argument unless 0 <= width and all layers have at most max_points.
    void add_layer(std::int64_t width);

    // Whether this pass needs the weights between layers `lower` and `lower` + 1. In the first
    // pass it needs all.
    bool needs(std::int64_t lower) const;

    // Takes what layer `lower` writes and the next one reads. Throws std::invalid_argument for
    // weights of another shape or that are not finite; the forest is then of no further use.
    template <typename T>
    void scan(std::int64_t lower, Rows<T> w_out, Rows<T> w_in, std::int64_t n_threads);

    // Ends a pass, in which every pair that is needed has been scanned; false if another one is
    // needed.
    bool contract();

    // In their total order; complete once contract() has returned true.
    std::vector<Edge> edges() const;
    std::int64_t size() const { return offsets_.back(); }
    std::int64_t n_dots() const { return n_dots_; }
    const std::vector<PairSummary>& pairs() const { return pairs_; }

private:
    struct Layer {
        std::int64_t first;
        std::vector<std::int32_t> all;
        std::vector<std::int32_t> needed;
    };
    // Whose lists a scan fills: those of the rows (the lower layer), of the columns, or of both.
    enum class Side { lower, upper, both };
    class Scanner;

    void check_pair(std::int64_t lower) const;
    template <typename T>
    void scan_rectangle(std::int64_t lower, Rows<T> w_out, Rows<T> w_in, Selection rows,
                        Selection cols, Side side, std::int64_t n_threads);
    void collect(std::int64_t lower, Selection rows, const std::vector<Scanner>& scanners);
    std::vector<Edge> shortest_edges(std::int32_t largest, std::vector<char>& is_certain);
    bool join(std::vector<Edge>& shortest);
    std::int32_t relabel();

    std::int64_t n_strongest_;
    std::int64_t n_dots_ = 0;
    bool first_pass_ = true;
    std::vector<std::int64_t> offsets_{0};
    std::vector<Layer> layers_;
    std::vector<char> scanned_;
    std::vector<PairSummary> pairs_;
    NearestLists lists_;
    DisjointSets sets_{0};
    std::vector<std::int32_t> labels_;
    std::vector<Edge> edges_;
};

}  // namespace dkn
