#include "dots.hpp"

#include <cstring>

#include "cpu_targets.hpp"

namespace dkn {
namespace {

#ifdef DKN_HAS_VECTOR_TYPES
// One row of a tile. Compilers do not reliably keep an array of sums in vector registers.
using Lanes [[gnu::vector_size(tile_cols * sizeof(double))]] = double;
#endif

template <std::int64_t n_rows>
DKN_ALWAYS_INLINE void add_tile(const double* rows, std::int64_t row_stride, const double* panel,
                                std::int64_t depth, double* sums) {
#ifdef DKN_HAS_VECTOR_TYPES
    Lanes acc[n_rows];
    std::memcpy(acc, sums, sizeof(acc));
    for (std::int64_t k = 0; k < depth; ++k) {
        Lanes lane;
        std::memcpy(&lane, panel + k * tile_cols, sizeof(lane));
        for (std::int64_t r = 0; r < n_rows; ++r) {
            acc[r] += rows[r * row_stride + k] * lane;
        }
    }
    std::memcpy(sums, acc, sizeof(acc));
#else
    for (std::int64_t k = 0; k < depth; ++k) {
        for (std::int64_t r = 0; r < n_rows; ++r) {
            for (std::int64_t c = 0; c < tile_cols; ++c) {
                sums[r * tile_cols + c] += rows[r * row_stride + k] * panel[k * tile_cols + c];
            }
        }
    }
#endif
}

// In steps of up to max_rows, as many as have their sums in registers.
template <std::int64_t max_rows>
DKN_ALWAYS_INLINE void add_rows(std::int64_t n_rows, const double* rows, std::int64_t stride,
                                const double* panel, std::int64_t depth, double* sums) {
    for (std::int64_t r = 0; r < n_rows; r += max_rows) {
        const double* x = rows + r * stride;
        double* out = sums + r * tile_cols;
        switch (std::min(max_rows, n_rows - r)) {
            case 1: add_tile<1>(x, stride, panel, depth, out); break;
            case 2: add_tile<2>(x, stride, panel, depth, out); break;
            case 3: add_tile<3>(x, stride, panel, depth, out); break;
            case 4: add_tile<4>(x, stride, panel, depth, out); break;
            case 5: add_tile<5>(x, stride, panel, depth, out); break;
            case 6: add_tile<6>(x, stride, panel, depth, out); break;
            case 7: add_tile<7>(x, stride, panel, depth, out); break;
            default: add_tile<8>(x, stride, panel, depth, out); break;
        }
    }
}

void add_products(std::int64_t n_rows, const double* rows, std::int64_t stride, const double* panel,
                  std::int64_t depth, double* sums) {
    add_rows<2>(n_rows, rows, stride, panel, depth, sums);
}

#ifdef DKN_HAS_X86_TARGETS
[[gnu::target("avx2")]] void add_products_avx2(std::int64_t n_rows, const double* rows,
                                               std::int64_t stride, const double* panel,
                                               std::int64_t depth, double* sums) {
    add_rows<4>(n_rows, rows, stride, panel, depth, sums);
}

[[gnu::target("avx512f")]] void add_products_avx512(std::int64_t n_rows, const double* rows,
                                                    std::int64_t stride, const double* panel,
                                                    std::int64_t depth, double* sums) {
    add_rows<8>(n_rows, rows, stride, panel, depth, sums);
}
#endif

}  // namespace

AddProducts best_add_products() {
#ifdef DKN_HAS_X86_TARGETS
    if (__builtin_cpu_supports("avx512f")) {
        return add_products_avx512;
    }
    if (__builtin_cpu_supports("avx2")) {
        return add_products_avx2;
    }
#endif
    return add_products;
}

template <typename T>
void pack_rows(Rows<T> matrix, Selection rows, double* out) {
    for (std::int64_t r = 0; r < rows.size; ++r) {
        const T* row = matrix.row(rows[r]);
        std::copy(row, row + matrix.d, out + r * matrix.d);
    }
}

template <typename T>
void pack_panel(Rows<T> matrix, Selection cols, double* panel) {
    const T* sources[tile_cols];
    for (std::int64_t c = 0; c < cols.size; ++c) {
        sources[c] = matrix.row(cols[c]);
    }
    if (cols.size == tile_cols) {
        for (std::int64_t k = 0; k < matrix.d; ++k) {
            for (std::int64_t c = 0; c < tile_cols; ++c) {
                panel[k * tile_cols + c] = static_cast<double>(sources[c][k]);
            }
        }
        return;
    }
    for (std::int64_t k = 0; k < matrix.d; ++k) {
        for (std::int64_t c = 0; c < tile_cols; ++c) {
            panel[k * tile_cols + c] = c < cols.size ? static_cast<double>(sources[c][k]) : 0.0;
        }
    }
}

template void pack_rows(Rows<float>, Selection, double*);
template void pack_rows(Rows<double>, Selection, double*);
template void pack_panel(Rows<float>, Selection, double*);
template void pack_panel(Rows<double>, Selection, double*);

}  // namespace dkn
