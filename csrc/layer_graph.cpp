#include "layer_graph.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#include "dots.hpp"

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// The located neurons of one layer, as ascending positions in the list of neurons.
struct Band {
    std::int32_t layer;
    std::vector<std::int32_t> members;

    std::int64_t size() const { return static_cast<std::int64_t>(members.size()); }
    Selection selection() const { return {members.data(), size()}; }
};

// A row-major matrix between the members of two bands.
struct BandMatrix {
    std::int64_t rows;
    std::int64_t cols;
    std::vector<double> values;

    BandMatrix(std::int64_t rows_, std::int64_t cols_)
        : rows(rows_), cols(cols_), values(static_cast<std::size_t>(rows_ * cols_), infinity) {}
    double* row(std::int64_t i) { return values.data() + i * cols; }
    const double* row(std::int64_t i) const { return values.data() + i * cols; }
};

std::vector<Band> layer_bands(Neurons neurons) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(neurons.n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return neurons.layer(a) < neurons.layer(b);
    });
    std::vector<Band> bands;
    for (std::int32_t position : order) {
        const std::int32_t layer = neurons.layer(position);
        if (bands.empty() || bands.back().layer != layer) {
            bands.push_back({layer, {}});
        }
        bands.back().members.push_back(position);
    }
    return bands;
}

bool are_adjacent(const Band& lower, const Band& upper) {
    return std::int64_t{upper.layer} - lower.layer == 1;
}

// Distances [lower, upper] between two adjacent bands.
template <typename T>
BandMatrix band_distances(const Band& lower, const Band& upper, Rows<T> w_out, Rows<T> w_in) {
    BandMatrix result(lower.size(), upper.size());
    for_each_tile(w_out, lower.selection(), w_in, upper.selection(),
                  [&](std::int64_t row, std::int64_t n_rows, std::int64_t col, std::int64_t n_cols,
                      const double* sums) {
                      for (std::int64_t r = 0; r < n_rows; ++r) {
                          const double* dots = sums + r * tile_cols;
                          std::transform(dots, dots + n_cols, result.row(row + r) + col,
                                         to_distance);
                      }
                  });
    return result;
}

// Shortest ways from the members of one band up to those of another: their lengths and, if asked
// for, the member of the band below the upper one that each comes through.
struct Reach {
    BandMatrix lengths;
    std::vector<std::int32_t> through;
};

Reach first_step(const Band& lower, const BandMatrix& step, bool with_paths) {
    Reach reach{step, {}};
    if (with_paths) {
        for (std::int32_t member : lower.members) {
            reach.through.insert(reach.through.end(), static_cast<std::size_t>(step.cols), member);
        }
    }
    return reach;
}

// lengths[a, b] = min over p of lengths[a, p] + step[p, b]; of equally long ways the first p's.
Reach next_step(const Reach& reach, const Band& middle, const BandMatrix& step) {
    const BandMatrix& lengths = reach.lengths;
    Reach next{BandMatrix(lengths.rows, step.cols), {}};
    if (!reach.through.empty()) {
        next.through.assign(next.lengths.values.size(), -1);
    }
    for (std::int64_t a = 0; a < lengths.rows; ++a) {
        double* out = next.lengths.row(a);
        for (std::int64_t p = 0; p < lengths.cols; ++p) {
            const double first = lengths.row(a)[p];
            const double* rest = step.row(p);
            if (next.through.empty()) {
                for (std::int64_t b = 0; b < step.cols; ++b) {
                    const double length = first + rest[b];
                    out[b] = length < out[b] ? length : out[b];
                }
                continue;
            }
            std::int32_t* through = next.through.data() + a * step.cols;
            const std::int32_t member = middle.members[static_cast<std::size_t>(p)];
            for (std::int64_t b = 0; b < step.cols; ++b) {
                const double length = first + rest[b];
                through[b] = length < out[b] ? member : through[b];
                out[b] = length < out[b] ? length : out[b];
            }
        }
    }
    return next;
}

void scatter(const Band& lower, const Band& upper, const Reach& reach, std::int64_t n,
             double* distances, std::int32_t* previous) {
    const BandMatrix& lengths = reach.lengths;
    for (std::int64_t a = 0; a < lengths.rows; ++a) {
        const std::int64_t i = lower.members[static_cast<std::size_t>(a)];
        for (std::int64_t b = 0; b < lengths.cols; ++b) {
            const std::int64_t j = upper.members[static_cast<std::size_t>(b)];
            const double length = lengths.row(a)[b];
            distances[i * n + j] = distances[j * n + i] = length;
            if (previous != nullptr && length < infinity) {
                previous[i * n + j] = reach.through[static_cast<std::size_t>(a * lengths.cols + b)];
            }
        }
    }
}

void check_neurons(Neurons neurons) {
    if (neurons.n > max_points) {
        throw std::invalid_argument("neurons must be at most 2**30; got " +
                                    std::to_string(neurons.n));
    }
    std::vector<std::tuple<std::int32_t, std::int32_t>> sorted;
    sorted.reserve(static_cast<std::size_t>(neurons.n));
    for (std::int64_t i = 0; i < neurons.n; ++i) {
        if (neurons.layer(i) < 0 || neurons.index(i) < 0) {
            std::ostringstream message;
            message << "neurons must not be negative; got (" << neurons.layer(i) << ", "
                    << neurons.index(i) << ") at row " << i;
            throw std::invalid_argument(message.str());
        }
        sorted.emplace_back(neurons.layer(i), neurons.index(i));
    }
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) {
        std::ostringstream message;
        message << "neurons must be distinct; got (" << std::get<0>(*twice) << ", "
                << std::get<1>(*twice) << ") twice";
        throw std::invalid_argument(message.str());
    }
}

}  // namespace

template <typename T>
void check_layer_graph(Neurons neurons, Rows<T> w_out, Rows<T> w_in) {
    check_neurons(neurons);
    check_rows("w_out", w_out, neurons.n, w_out.d);
    check_rows("w_in", w_in, neurons.n, w_out.d);
}

template <typename T>
std::vector<Edge> adjacent_edges(Neurons neurons, Rows<T> w_out, Rows<T> w_in) {
    const std::vector<Band> bands = layer_bands(neurons);
    std::vector<Edge> edges;
    for (std::size_t s = 0; s + 1 < bands.size(); ++s) {
        const Band& lower = bands[s];
        const Band& upper = bands[s + 1];
        if (!are_adjacent(lower, upper)) {
            continue;
        }
        const BandMatrix block = band_distances(lower, upper, w_out, w_in);
        for (std::int64_t a = 0; a < block.rows; ++a) {
            const std::int32_t i = lower.members[static_cast<std::size_t>(a)];
            for (std::int64_t b = 0; b < block.cols; ++b) {
                const std::int32_t j = upper.members[static_cast<std::size_t>(b)];
                if (block.row(a)[b] < infinity) {
                    edges.push_back({block.row(a)[b], std::min(i, j), std::max(i, j)});
                }
            }
        }
    }
    return edges;
}

template <typename T>
void layer_distances(Neurons neurons, Rows<T> w_out, Rows<T> w_in, std::int64_t max_span,
                     double* distances, std::int32_t* previous) {
    const std::int64_t n = neurons.n;
    std::fill(distances, distances + n * n, infinity);
    if (previous != nullptr) {
        std::fill(previous, previous + n * n, -1);
    }
    for (std::int64_t i = 0; i < n; ++i) {
        distances[i * n + i] = 0.0;
    }
    const std::vector<Band> bands = layer_bands(neurons);
    // steps[s] holds the distances from band s to band s + 1; empty where a layer lies between.
    std::vector<BandMatrix> steps;
    for (std::size_t s = 0; s + 1 < bands.size(); ++s) {
        steps.push_back(are_adjacent(bands[s], bands[s + 1])
                            ? band_distances(bands[s], bands[s + 1], w_out, w_in)
                            : BandMatrix(0, 0));
    }
    const std::size_t limit =
        max_span == no_max_span ? bands.size() : static_cast<std::size_t>(max_span);
    for (std::size_t s = 0; s < steps.size(); ++s) {
        if (steps[s].rows == 0) {
            continue;
        }
        Reach reach = first_step(bands[s], steps[s], previous != nullptr);
        for (std::size_t t = s + 1;; ++t) {
            scatter(bands[s], bands[t], reach, n, distances, previous);
            if (t >= steps.size() || t - s >= limit || steps[t].rows == 0) {
                break;
            }
            reach = next_step(reach, bands[t], steps[t]);
        }
    }
}

template void check_layer_graph(Neurons, Rows<float>, Rows<float>);
template void check_layer_graph(Neurons, Rows<double>, Rows<double>);
template std::vector<Edge> adjacent_edges(Neurons, Rows<float>, Rows<float>);
template std::vector<Edge> adjacent_edges(Neurons, Rows<double>, Rows<double>);
template void layer_distances(Neurons, Rows<float>, Rows<float>, std::int64_t, double*,
                              std::int32_t*);
template void layer_distances(Neurons, Rows<double>, Rows<double>, std::int64_t, double*,
                              std::int32_t*);

}  // namespace dkn
