#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rows.hpp"

namespace dkn {

// Ascending row numbers of a matrix.
struct Selection {
    const std::int32_t* data;
    std::int64_t size;

    std::int32_t operator[](std::int64_t i) const { return data[i]; }
    Selection part(std::int64_t first, std::int64_t count) const { return {data + first, count}; }
};

// Dots come in tiles [tile_rows, tile_cols]; the accumulators of one fit in vector registers.
constexpr std::int64_t tile_rows = 8;
constexpr std::int64_t tile_cols = 8;
constexpr std::int64_t tile_size = tile_rows * tile_cols;

// Adds to sums[r, c] the products of rows[r, k] with panel[k, c], k ascending; n_rows of stride
// row_stride, 1 to tile_rows of them.
using AddProducts = void (*)(std::int64_t n_rows, const double* rows, std::int64_t row_stride,
                             const double* panel, std::int64_t depth, double* sums);

// The fastest such function of this processor. All of them give the same bits: lanes are separate
// sums, and nothing is contracted into fused multiply-adds.
AddProducts best_add_products();

// Rows as double [count, d].
template <typename T>
void pack_rows(Rows<T> matrix, Selection rows, double* out);

// At most tile_cols rows as the columns of a panel [d, tile_cols]; missing ones are 0.
template <typename T>
void pack_panel(Rows<T> matrix, Selection cols, double* panel);

// Calls visit(row, n_rows, col, n_cols, sums) for each tile of the dots of left's rows with right's
// rows (the columns), where sums is [tile_rows, tile_cols] and row and col count within the
// selections. Each dot is accumulated in double in the order of the matrices' columns, so it
// depends on its two rows only.
template <typename T, typename Visit>
void for_each_tile(Rows<T> left, Selection rows, Rows<T> right, Selection cols, Visit visit) {
    // Panels that are used together stay in the second-level cache, the part of the row tile that
    // they meet in the first.
    constexpr std::int64_t cache_bytes = 512 * 1024;
    constexpr std::int64_t depth = 256;
    const std::int64_t d = left.d;
    const std::int64_t panel_size = std::max<std::int64_t>(1, d * tile_cols);
    const std::int64_t group = std::max<std::int64_t>(1, cache_bytes / 8 / panel_size);
    const AddProducts add_products = best_add_products();
    const std::int64_t n_panels = (cols.size + tile_cols - 1) / tile_cols;
    std::vector<double> panels(static_cast<std::size_t>(std::min(group, n_panels) * panel_size));
    std::vector<double> sums(static_cast<std::size_t>(std::min(group, n_panels) * tile_size));
    std::vector<double> tile(static_cast<std::size_t>(std::min(rows.size, tile_rows) * d));
    for (std::int64_t first = 0; first < n_panels; first += group) {
        const std::int64_t count = std::min(group, n_panels - first);
        const auto panel_cols = [&](std::int64_t p) {
            const std::int64_t col = (first + p) * tile_cols;
            return cols.part(col, std::min(tile_cols, cols.size - col));
        };
        for (std::int64_t p = 0; p < count; ++p) {
            pack_panel(right, panel_cols(p), panels.data() + p * panel_size);
        }
        for (std::int64_t row = 0; row < rows.size; row += tile_rows) {
            const std::int64_t n_rows = std::min(tile_rows, rows.size - row);
            pack_rows(left, rows.part(row, n_rows), tile.data());
            std::fill(sums.begin(), sums.end(), 0.0);
            for (std::int64_t k = 0; k < d; k += depth) {
                for (std::int64_t p = 0; p < count; ++p) {
                    add_products(n_rows, tile.data() + k, d,
                                 panels.data() + p * panel_size + k * tile_cols,
                                 std::min(depth, d - k), sums.data() + p * tile_size);
                }
            }
            for (std::int64_t p = 0; p < count; ++p) {
                visit(row, n_rows, (first + p) * tile_cols, panel_cols(p).size,
                      static_cast<const double*>(sums.data() + p * tile_size));
            }
        }
    }
}

}  // namespace dkn
