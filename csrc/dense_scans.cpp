#include "dense_scans.hpp"

namespace dkn {
namespace {

Edge relax(Links& links, const double* row, std::int32_t joined) {
    const double least = relax_from(0, links, row, joined);
    return least < infinity ? first_link_from(0, links, least, no_edge) : no_edge;
}

}  // namespace

Relax best_relax() {
#ifdef DKN_HAS_X86_TARGETS
    if (__builtin_cpu_supports("avx2")) {
        return relax_avx2;
    }
#endif
    return relax;
}

// Written so that nan fails.
bool is_valid_block(const double* distances, std::int64_t n, Range rows, Range cols) {
    bool valid = true;
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
        for (std::int64_t j = std::max(cols.first, i + 1); j < cols.last; ++j) {
            const double upper = distances[i * n + j];
            valid &= (upper >= 0.0) & (upper == distances[j * n + i]);
        }
    }
    return valid;
}

IsValidBlock best_is_valid_block() {
#ifdef DKN_HAS_X86_TARGETS
    if (__builtin_cpu_supports("avx2")) {
        return is_valid_block_avx2;
    }
#endif
    return is_valid_block;
}

}  // namespace dkn
