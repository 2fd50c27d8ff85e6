#include "layer_graph.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>

#if defined(__GNUC__)
#define DKN_ALWAYS_INLINE [[gnu::always_inline]] inline
#if defined(__x86_64__)
#define DKN_HAS_AVX2
#endif
#else
#define DKN_ALWAYS_INLINE inline
#endif

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// The located neurons of one layer, as ascending positions in the list of neurons.
struct Band {
    std::int32_t layer;
    std::vector<std::int32_t> members;

    std::int64_t size() const { return static_cast<std::int64_t>(members.size()); }
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

// Tile of the weight kernel: small enough for the accumulators to stay in 16 SSE2 registers.
constexpr std::int64_t tile_rows = 4;
constexpr std::int64_t tile_cols = 4;

using Tile = std::array<std::array<double, tile_cols>, tile_rows>;

// Columns [first, first + tile_cols) of the upper band, interleaved [d, tile_cols]. Neighbouring
// lanes belong to different dots, so the compiler can use vector registers without reordering
// any sum.
template <typename T>
void pack_panel(const Band& upper, Rows<T> w_in, std::int64_t first, std::vector<double>& panel) {
    panel.assign(static_cast<std::size_t>(w_in.d * tile_cols), 0.0);
    const std::int64_t count = std::min(tile_cols, upper.size() - first);
    for (std::int64_t c = 0; c < count; ++c) {
        const T* source = w_in.row(upper.members[static_cast<std::size_t>(first + c)]);
        for (std::int64_t k = 0; k < w_in.d; ++k) {
            panel[static_cast<std::size_t>(k * tile_cols + c)] = static_cast<double>(source[k]);
        }
    }
}

template <typename T>
using RowPointers = std::array<const T*, tile_rows>;

// Dots of n_rows rows with the columns of a panel.
template <std::int64_t n_rows, typename T>
DKN_ALWAYS_INLINE void multiply_tile(const RowPointers<T>& rows, const double* panel,
                                     std::int64_t d, Tile& sums) {
    double acc[n_rows][tile_cols] = {};
    for (std::int64_t k = 0; k < d; ++k) {
        const double* lane = panel + k * tile_cols;
        for (std::size_t r = 0; r < n_rows; ++r) {
            const double x = static_cast<double>(rows[r][k]);
            for (std::int64_t c = 0; c < tile_cols; ++c) {
                acc[r][c] += x * lane[c];
            }
        }
    }
    for (std::size_t r = 0; r < n_rows; ++r) {
        std::copy(acc[r], acc[r] + tile_cols, sums[r].begin());
    }
}

template <typename T>
DKN_ALWAYS_INLINE void multiply_any(std::int64_t n_rows, const RowPointers<T>& rows,
                                    const double* panel, std::int64_t d, Tile& sums) {
    switch (n_rows) {
        case 1: return multiply_tile<1>(rows, panel, d, sums);
        case 2: return multiply_tile<2>(rows, panel, d, sums);
        case 3: return multiply_tile<3>(rows, panel, d, sums);
        default: return multiply_tile<4>(rows, panel, d, sums);
    }
}

// The same code for the baseline processor and, where there is one, for wider registers. Lanes are
// separate sums and nothing is contracted, so both give the same bits.
template <typename T>
void multiply_rows(std::int64_t n_rows, const RowPointers<T>& rows, const double* panel,
                   std::int64_t d, Tile& sums) {
    multiply_any(n_rows, rows, panel, d, sums);
}

#ifdef DKN_HAS_AVX2
template <typename T>
[[gnu::target("avx2")]] void multiply_rows_avx2(std::int64_t n_rows, const RowPointers<T>& rows,
                                                const double* panel, std::int64_t d,
                                                Tile& sums) {
    multiply_any(n_rows, rows, panel, d, sums);
}
#endif

template <typename T>
using Multiply = void (*)(std::int64_t, const RowPointers<T>&, const double*, std::int64_t, Tile&);

template <typename T>
Multiply<T> best_multiply() {
#ifdef DKN_HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        return multiply_rows_avx2<T>;
    }
#endif
    return multiply_rows<T>;
}

double to_distance(double weight) {
    if (std::isnan(weight)) {
        throw std::invalid_argument(
            "w_out and w_in must have finite dot products; got an overflow to nan");
    }
    return std::abs(1.0 / weight);
}

// Distances [lower, upper] between two adjacent bands.
template <typename T>
BandMatrix band_distances(const Band& lower, const Band& upper, Rows<T> w_out, Rows<T> w_in) {
    BandMatrix result(lower.size(), upper.size());
    std::vector<double> panel;
    const Multiply<T> multiply = best_multiply<T>();
    for (std::int64_t col = 0; col < upper.size(); col += tile_cols) {
        pack_panel(upper, w_in, col, panel);
        const std::int64_t n_cols = std::min(tile_cols, upper.size() - col);
        for (std::int64_t row = 0; row < lower.size(); row += tile_rows) {
            const std::int64_t n_rows = std::min(tile_rows, lower.size() - row);
            RowPointers<T> rows{};
            for (std::int64_t r = 0; r < n_rows; ++r) {
                rows[static_cast<std::size_t>(r)] =
                    w_out.row(lower.members[static_cast<std::size_t>(row + r)]);
            }
            Tile sums;
            multiply(n_rows, rows, panel.data(), w_out.d, sums);
            for (std::int64_t r = 0; r < n_rows; ++r) {
                const auto& dots = sums[static_cast<std::size_t>(r)];
                std::transform(dots.begin(), dots.begin() + n_cols, result.row(row + r) + col,
                               to_distance);
            }
        }
    }
    return result;
}

// (left + right)[a, b] = min over p of left[a, p] + right[p, b].
BandMatrix min_plus(const BandMatrix& left, const BandMatrix& right) {
    BandMatrix result(left.rows, right.cols);
    for (std::int64_t a = 0; a < left.rows; ++a) {
        double* out = result.row(a);
        for (std::int64_t p = 0; p < left.cols; ++p) {
            const double first = left.row(a)[p];
            const double* rest = right.row(p);
            for (std::int64_t b = 0; b < right.cols; ++b) {
                const double length = first + rest[b];
                out[b] = length < out[b] ? length : out[b];
            }
        }
    }
    return result;
}

void scatter(const Band& lower, const Band& upper, const BandMatrix& block, std::int64_t n,
             double* distances) {
    for (std::int64_t a = 0; a < block.rows; ++a) {
        const std::int64_t i = lower.members[static_cast<std::size_t>(a)];
        for (std::int64_t b = 0; b < block.cols; ++b) {
            const std::int64_t j = upper.members[static_cast<std::size_t>(b)];
            distances[i * n + j] = distances[j * n + i] = block.row(a)[b];
        }
    }
}

template <typename T>
void check_finite(const char* name, Rows<T> matrix) {
    for (std::int64_t i = 0; i < matrix.n; ++i) {
        const T* row = matrix.row(i);
        // x - x is 0 for finite x and nan otherwise; this form vectorises.
        std::int32_t bad = 0;
        for (std::int64_t k = 0; k < matrix.d; ++k) {
            bad += (row[k] - row[k]) == T{0} ? 0 : 1;
        }
        if (bad > 0) {
            const T* first =
                std::find_if(row, row + matrix.d, [](T x) { return !std::isfinite(x); });
            std::ostringstream message;
            message << name << " must be finite; got " << *first << " at [" << i << ", "
                    << (first - row) << "]";
            throw std::invalid_argument(message.str());
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

template <typename T>
void check_rows(const char* name, Rows<T> matrix, std::int64_t n, std::int64_t d) {
    if (matrix.n != n || matrix.d != d) {
        std::ostringstream message;
        message << name << " must be [" << n << ", " << d << "], a row for each neuron; got ["
                << matrix.n << ", " << matrix.d << "]";
        throw std::invalid_argument(message.str());
    }
    check_finite(name, matrix);
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
                     double* distances) {
    const std::int64_t n = neurons.n;
    std::fill(distances, distances + n * n, infinity);
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
        BandMatrix reach = steps[s];
        for (std::size_t t = s + 1; reach.rows > 0; ++t) {
            scatter(bands[s], bands[t], reach, n, distances);
            if (t >= steps.size() || t - s >= limit || steps[t].rows == 0) {
                break;
            }
            reach = min_plus(reach, steps[t]);
        }
    }
}

template void check_layer_graph(Neurons, Rows<float>, Rows<float>);
template void check_layer_graph(Neurons, Rows<double>, Rows<double>);
template std::vector<Edge> adjacent_edges(Neurons, Rows<float>, Rows<float>);
template std::vector<Edge> adjacent_edges(Neurons, Rows<double>, Rows<double>);
template void layer_distances(Neurons, Rows<float>, Rows<float>, std::int64_t, double*);
template void layer_distances(Neurons, Rows<double>, Rows<double>, std::int64_t, double*);

}  // namespace dkn
