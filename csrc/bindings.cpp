// The only file that knows Python. Arrays are taken as they are (noconvert) and checked for rank
// and shape; the work runs without the interpreter's lock.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "components.hpp"
#include "layer_graph.hpp"
#include "merge_tree.hpp"
#include "model_forest.hpp"
#include "parallel.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

using TreeArrays = std::tuple<Array<std::int32_t>, Array<double>, Array<std::int32_t>>;

std::string shape_of(const py::array& array) {
    std::string text = "[";
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(array.shape(axis));
    }
    return text + "]";
}

void require_shape(bool ok, const char* name, const char* expected, const py::array& array) {
    if (!ok) {
        throw std::invalid_argument(std::string(name) + " must be " + expected + "; got " +
                                    shape_of(array));
    }
}

dkn::Neurons to_neurons(const Array<std::int32_t>& array) {
    require_shape(array.ndim() == 2 && array.shape(1) == 2, "neurons", "[n, 2]", array);
    return {array.data(), array.shape(0)};
}

template <typename T>
dkn::Rows<T> to_rows(const char* name, const Array<T>& array) {
    require_shape(array.ndim() == 2, name, "[n, d]", array);
    return {array.data(), array.shape(0), array.shape(1)};
}

template <typename T>
Array<T> to_array(const std::vector<T>& values) {
    return Array<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

TreeArrays to_arrays(const dkn::MergeTree& tree) {
    Array<std::int32_t> children({static_cast<py::ssize_t>(tree.children.size()), py::ssize_t{2}});
    std::int32_t* out = children.mutable_data();
    for (const auto& pair : tree.children) {
        out = std::copy(pair.begin(), pair.end(), out);
    }
    return {std::move(children), to_array(tree.heights), to_array(tree.sizes)};
}

// One graph of located neurons with views of its gathered weights.
template <typename T>
struct LayerGraph {
    dkn::Neurons neurons;
    dkn::Rows<T> w_out;
    dkn::Rows<T> w_in;

    std::vector<dkn::Edge> edges() const {
        dkn::check_layer_graph(neurons, w_out, w_in);
        return dkn::adjacent_edges(neurons, w_out, w_in);
    }
};

void check_max_span(std::int64_t max_span) {
    if (max_span < 0) {
        throw std::invalid_argument("max_span must be 0 (no limit) or more; got " +
                                    std::to_string(max_span));
    }
}

void check_threads(std::int64_t n_threads) {
    if (n_threads < 1) {
        throw std::invalid_argument("n_threads must be at least 1; got " +
                                    std::to_string(n_threads));
    }
}

template <typename T>
Array<double> distances(const Array<std::int32_t>& neurons, const Array<T>& w_out,
                        const Array<T>& w_in, std::int64_t max_span) {
    const LayerGraph<T> graph{to_neurons(neurons), to_rows("w_out", w_out), to_rows("w_in", w_in)};
    check_max_span(max_span);
    Array<double> result({graph.neurons.n, graph.neurons.n});
    double* out = result.mutable_data();
    {
        const py::gil_scoped_release release;
        dkn::check_layer_graph(graph.neurons, graph.w_out, graph.w_in);
        dkn::layer_distances(graph.neurons, graph.w_out, graph.w_in, max_span, out, nullptr);
    }
    return result;
}

// Distances, and for each the neuron before the last on the way up.
template <typename T>
std::tuple<Array<double>, Array<std::int32_t>> layer_paths(const Array<std::int32_t>& neurons,
                                                           const Array<T>& w_out,
                                                           const Array<T>& w_in,
                                                           std::int64_t max_span) {
    const LayerGraph<T> graph{to_neurons(neurons), to_rows("w_out", w_out), to_rows("w_in", w_in)};
    check_max_span(max_span);
    Array<double> lengths({graph.neurons.n, graph.neurons.n});
    Array<std::int32_t> previous({graph.neurons.n, graph.neurons.n});
    double* out = lengths.mutable_data();
    std::int32_t* before = previous.mutable_data();
    {
        const py::gil_scoped_release release;
        dkn::check_layer_graph(graph.neurons, graph.w_out, graph.w_in);
        dkn::layer_distances(graph.neurons, graph.w_out, graph.w_in, max_span, out, before);
    }
    return {std::move(lengths), std::move(previous)};
}

template <typename T>
std::tuple<TreeArrays, Array<double>> layer_tree(const Array<std::int32_t>& neurons,
                                                 const Array<T>& w_out, const Array<T>& w_in) {
    const LayerGraph<T> graph{to_neurons(neurons), to_rows("w_out", w_out), to_rows("w_in", w_in)};
    std::vector<double> lengths;
    dkn::MergeTree tree;
    {
        const py::gil_scoped_release release;
        std::vector<dkn::Edge> edges = graph.edges();
        lengths.reserve(edges.size());
        for (const dkn::Edge& edge : edges) {
            lengths.push_back(edge.value);
        }
        tree = dkn::merge_edges(graph.neurons.n, std::move(edges));
    }
    return {to_arrays(tree), to_array(lengths)};
}

template <typename T>
using GraphArrays = std::tuple<Array<std::int32_t>, Array<T>, Array<T>>;

template <typename T>
std::vector<LayerGraph<T>> to_graphs(const std::vector<GraphArrays<T>>& arrays) {
    std::vector<LayerGraph<T>> graphs;
    for (const auto& [neurons, w_out, w_in] : arrays) {
        graphs.push_back({to_neurons(neurons), to_rows("w_out", w_out), to_rows("w_in", w_in)});
    }
    return graphs;
}

// The message of an error in one of many graphs says which.
template <typename Work>
void name_graph(std::size_t g, Work work) {
    try {
        work();
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument("graph " + std::to_string(g) + ": " + error.what());
    }
}

template <typename T>
std::vector<TreeArrays> layer_trees(const std::vector<GraphArrays<T>>& arrays,
                                    std::int64_t n_threads) {
    check_threads(n_threads);
    const std::vector<LayerGraph<T>> graphs = to_graphs(arrays);
    std::vector<dkn::MergeTree> trees(graphs.size());
    {
        const py::gil_scoped_release release;
        dkn::parallel_for(graphs.size(), static_cast<std::size_t>(n_threads), [&](std::size_t g) {
            name_graph(
                g, [&] { trees[g] = dkn::merge_edges(graphs[g].neurons.n, graphs[g].edges()); });
        });
    }
    std::vector<TreeArrays> result;
    for (const dkn::MergeTree& tree : trees) {
        result.push_back(to_arrays(tree));
    }
    return result;
}

// Of each graph the merge tree, the lengths of its edges and, if asked for, its distances (else an
// empty matrix).
template <typename T>
auto layer_graphs(const std::vector<GraphArrays<T>>& arrays, bool with_distances,
                  std::int64_t max_span, std::int64_t n_threads) {
    check_threads(n_threads);
    check_max_span(max_span);
    const std::vector<LayerGraph<T>> graphs = to_graphs(arrays);
    std::vector<dkn::MergeTree> trees(graphs.size());
    std::vector<std::vector<double>> lengths(graphs.size());
    std::vector<Array<double>> matrices;
    std::vector<double*> outs;
    for (const LayerGraph<T>& graph : graphs) {
        const std::int64_t n = with_distances ? graph.neurons.n : 0;
        matrices.push_back(Array<double>({n, n}));
        outs.push_back(matrices.back().mutable_data());
    }
    {
        const py::gil_scoped_release release;
        dkn::parallel_for(graphs.size(), static_cast<std::size_t>(n_threads), [&](std::size_t g) {
            const LayerGraph<T>& graph = graphs[g];
            name_graph(g, [&] {
                std::vector<dkn::Edge> edges = graph.edges();
                for (const dkn::Edge& edge : edges) {
                    lengths[g].push_back(edge.value);
                }
                trees[g] = dkn::merge_edges(graph.neurons.n, std::move(edges));
                if (with_distances) {
                    dkn::layer_distances(graph.neurons, graph.w_out, graph.w_in, max_span, outs[g],
                                         nullptr);
                }
            });
        });
    }
    std::vector<std::tuple<TreeArrays, Array<double>, Array<double>>> result;
    for (std::size_t g = 0; g < graphs.size(); ++g) {
        result.emplace_back(to_arrays(trees[g]), to_array(lengths[g]), std::move(matrices[g]));
    }
    return result;
}

TreeArrays dense_tree(const Array<double>& distances) {
    require_shape(distances.ndim() == 2 && distances.shape(0) == distances.shape(1), "distances",
                  "square [n, n]", distances);
    const double* data = distances.data();
    const std::int64_t n = distances.shape(0);
    dkn::MergeTree tree;
    {
        const py::gil_scoped_release release;
        dkn::check_distances(data, n);
        tree = dkn::merge_dense(data, n);
    }
    return to_arrays(tree);
}

TreeArrays edge_tree(std::int64_t n, const Array<std::int32_t>& pairs,
                     const Array<double>& values) {
    require_shape(pairs.ndim() == 2 && pairs.shape(1) == 2, "edges", "[e, 2]", pairs);
    require_shape(values.ndim() == 1 && values.shape(0) == pairs.shape(0), "values",
                  "[e], one for each edge", values);
    const std::int32_t* pair = pairs.data();
    const double* value = values.data();
    const std::int64_t count = values.shape(0);
    dkn::MergeTree tree;
    {
        const py::gil_scoped_release release;
        std::vector<dkn::Edge> edges;
        edges.reserve(static_cast<std::size_t>(count));
        for (std::int64_t e = 0; e < count; ++e) {
            edges.push_back({value[e], pair[2 * e], pair[2 * e + 1]});
        }
        dkn::check_edges(n, edges);
        tree = dkn::merge_edges(n, std::move(edges));
    }
    return to_arrays(tree);
}

dkn::MergeTree to_tree(std::int64_t n, const Array<std::int32_t>& children,
                       const Array<double>& heights, const Array<std::int32_t>& sizes) {
    const py::ssize_t m = heights.size();
    require_shape(heights.ndim() == 1, "heights", "[m]", heights);
    require_shape(children.ndim() == 2 && children.shape(0) == m && children.shape(1) == 2,
                  "children", "[m, 2], a row for each height", children);
    require_shape(sizes.ndim() == 1 && sizes.shape(0) == m, "sizes", "[m], one for each height",
                  sizes);
    if (n < 0 || n > dkn::max_points || (m > 0 && m >= n)) {
        throw std::invalid_argument("n must be from " + std::to_string(m == 0 ? 0 : m + 1) +
                                    " to 2**30; got " + std::to_string(n));
    }
    dkn::MergeTree tree;
    tree.n = n;
    for (py::ssize_t k = 0; k < m; ++k) {
        tree.children.push_back({children.data()[2 * k], children.data()[2 * k + 1]});
    }
    tree.heights.assign(heights.data(), heights.data() + m);
    tree.sizes.assign(sizes.data(), sizes.data() + m);
    return tree;
}

auto components(std::int64_t n, const Array<std::int32_t>& children, const Array<double>& heights,
                const Array<std::int32_t>& sizes, std::int64_t min_size, bool condensed,
                double end) {
    const dkn::MergeTree tree = to_tree(n, children, heights, sizes);
    if (min_size < 1) {
        throw std::invalid_argument("min_size must be at least 1; got " + std::to_string(min_size));
    }
    if (!(end >= 0.0)) {
        throw std::invalid_argument("end must be 0 or more; got " + std::to_string(end));
    }
    dkn::Components found;
    {
        const py::gil_scoped_release release;
        dkn::check_tree(tree);
        found = dkn::find_components(tree, min_size, condensed, end);
    }
    return std::make_tuple(to_array(found.births), to_array(found.deaths), to_array(found.sizes),
                           to_array(found.parents), to_array(found.labels));
}

// One pair of adjacent layers of a pass; see ModelForest.
template <typename T>
void scan_pair(dkn::ModelForest& forest, std::int64_t lower, const Array<T>& w_out,
               const Array<T>& w_in, std::int64_t n_threads) {
    const dkn::Rows<T> out = to_rows("w_out", w_out);
    const dkn::Rows<T> in = to_rows("w_in", w_in);
    const py::gil_scoped_release release;
    forest.scan(lower, out, in, n_threads);
}

std::tuple<Array<std::int32_t>, TreeArrays> forest_tree(const dkn::ModelForest& forest) {
    const std::vector<dkn::Edge> edges = forest.edges();
    Array<std::int32_t> ends({static_cast<py::ssize_t>(edges.size()), py::ssize_t{2}});
    std::int32_t* out = ends.mutable_data();
    for (const dkn::Edge& edge : edges) {
        *out++ = edge.i;
        *out++ = edge.j;
    }
    return {std::move(ends), to_arrays(dkn::merge_edges(forest.size(), edges))};
}

// The points, weights and the sum of absolute weights of each pair of layers.
auto forest_pairs(const dkn::ModelForest& forest) {
    std::vector<std::tuple<Array<std::int32_t>, Array<double>, double>> result;
    for (const dkn::PairSummary& pair : forest.pairs()) {
        const auto count = static_cast<py::ssize_t>(pair.strongest.size());
        Array<std::int32_t> ends({count, py::ssize_t{2}});
        Array<double> weights(count);
        std::int32_t* out = ends.mutable_data();
        double* weight = weights.mutable_data();
        for (const dkn::Connection& connection : pair.strongest) {
            *out++ = connection.edge.i;
            *out++ = connection.edge.j;
            *weight++ = connection.weight;
        }
        result.emplace_back(std::move(ends), std::move(weights), pair.total);
    }
    return result;
}

void define_model_forest(py::module_& m) {
    using dkn::ModelForest;
    py::class_<ModelForest>(m, "ModelForest")
        .def(py::init<std::int64_t, std::int64_t>(), "list_length"_a, "n_strongest"_a)
        .def("add_layer", &ModelForest::add_layer, "width"_a)
        .def("needs", &ModelForest::needs, "lower"_a)
        .def("scan", &scan_pair<float>, "lower"_a, "w_out"_a.noconvert(), "w_in"_a.noconvert(),
             "n_threads"_a)
        .def("scan", &scan_pair<double>, "lower"_a, "w_out"_a.noconvert(), "w_in"_a.noconvert(),
             "n_threads"_a)
        .def("contract", &ModelForest::contract, py::call_guard<py::gil_scoped_release>())
        .def("tree", &forest_tree)
        .def("pairs", &forest_pairs)
        .def_property_readonly("n_dots", &ModelForest::n_dots);
}

template <typename T>
void define_layer_graph(py::module_& m) {
    m.def("distances", &distances<T>, "neurons"_a.noconvert(), "w_out"_a.noconvert(),
          "w_in"_a.noconvert(), "max_span"_a);
    m.def("layer_tree", &layer_tree<T>, "neurons"_a.noconvert(), "w_out"_a.noconvert(),
          "w_in"_a.noconvert());
    m.def("layer_paths", &layer_paths<T>, "neurons"_a.noconvert(), "w_out"_a.noconvert(),
          "w_in"_a.noconvert(), "max_span"_a);
    m.def("layer_trees", &layer_trees<T>, "graphs"_a.noconvert(), "n_threads"_a);
    m.def("layer_graphs", &layer_graphs<T>, "graphs"_a.noconvert(), "with_distances"_a,
          "max_span"_a, "n_threads"_a);
}

}  // namespace

// No function keeps state between calls, so the module is safe without the interpreter's lock; a
// ModelForest is for one thread at a time.
PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
    m.doc() = "Layer graphs, H0 merge trees and their components; see dkn_engine.topology.";
    define_layer_graph<float>(m);
    define_layer_graph<double>(m);
    define_model_forest(m);
    m.def("dense_tree", &dense_tree, "distances"_a.noconvert());
    m.def("edge_tree", &edge_tree, "n"_a, "edges"_a.noconvert(), "values"_a.noconvert());
    m.def("components", &components, "n"_a, "children"_a.noconvert(), "heights"_a.noconvert(),
          "sizes"_a.noconvert(), "min_size"_a, "condensed"_a, "end"_a);
}
