#include "dense_scans.hpp"

#ifdef DKN_HAS_X86_TARGETS
#include <immintrin.h>

namespace dkn {

// By hand, since compilers do not vectorise the least of numbers that may be nan. Most rows improve
// few links, and few links have the least length, so those are left to plain code.
[[gnu::target("avx2")]] Edge relax_avx2(Links& links, const double* row, std::int32_t joined) {
    const double* lengths = links.lengths.data();
    const std::int64_t whole = links.size() / 4 * 4;
    __m256d least_lanes = _mm256_set1_pd(infinity);
    for (std::int64_t k = 0; k < whole; k += 4) {
        // The processor's own prefetching starts anew at every page.
        _mm_prefetch(reinterpret_cast<const char*>(row + std::min(k + 256, whole)), _MM_HINT_T0);
        __m256d length = _mm256_loadu_pd(lengths + k);
        if (_mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(row + k), length, _CMP_LE_OQ)) != 0) {
            for (std::int64_t lane = k; lane < k + 4; ++lane) {
                links.offer(lane, row[lane], joined);
            }
            length = _mm256_loadu_pd(lengths + k);
        }
        // The second operand where the first is nan.
        least_lanes = _mm256_min_pd(length, least_lanes);
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, least_lanes);
    const double least =
        std::min(*std::min_element(lanes, lanes + 4), relax_from(whole, links, row, joined));
    if (least == infinity) {
        return no_edge;
    }
    Edge first = no_edge;
    const __m256d wanted = _mm256_set1_pd(least);
    for (std::int64_t k = 0; k < whole; k += 4) {
        const __m256d length = _mm256_loadu_pd(lengths + k);
        if (_mm256_movemask_pd(_mm256_cmp_pd(length, wanted, _CMP_EQ_OQ)) != 0) {
            for (std::int64_t lane = k; lane < k + 4; ++lane) {
                if (lengths[lane] == least) {
                    first = std::min(first, links.edge(lane));
                }
            }
        }
    }
    return first_link_from(whole, links, least, first);
}

namespace {

// Asks for 4 rows of the block that is checked next: each is on another page.
void prefetch_rows(const double* first, std::int64_t n, std::int64_t length) {
    for (std::int64_t r = 0; r < 4; ++r) {
        for (std::int64_t k = 0; k < length; k += 8) {
            _mm_prefetch(reinterpret_cast<const char*>(first + r * n + k), _MM_HINT_T1);
        }
    }
}

}  // namespace

// Pairs for four rows and columns at a time, where they lie above the diagonal.
[[gnu::target("avx2")]] bool is_valid_block_avx2(const double* distances, std::int64_t n,
                                                 Range rows, Range cols) {
    if (rows.last > cols.first) {
        return is_valid_block(distances, n, rows, cols);
    }
    const Range four_rows{rows.first, rows.last - (rows.last - rows.first) % 4};
    const Range four_cols{cols.first, cols.last - (cols.last - cols.first) % 4};
    const __m256d zero = _mm256_setzero_pd();
    __m256d valid = _mm256_cmp_pd(zero, zero, _CMP_EQ_OQ);
    for (std::int64_t i = four_rows.first; i < four_rows.last; i += 4) {
        for (std::int64_t j = four_cols.first; j < four_cols.last; j += 4) {
            const double* lower = distances + j * n + i;
            const std::int64_t ahead = cols.last - cols.first;
            if (i == four_rows.first && j + ahead + 3 < n) {
                prefetch_rows(lower + ahead * n, n, rows.last - rows.first);
            }
            const __m256d a = _mm256_loadu_pd(lower);
            const __m256d b = _mm256_loadu_pd(lower + n);
            const __m256d c = _mm256_loadu_pd(lower + 2 * n);
            const __m256d d = _mm256_loadu_pd(lower + 3 * n);
            const __m256d ab_even = _mm256_unpacklo_pd(a, b);
            const __m256d ab_odd = _mm256_unpackhi_pd(a, b);
            const __m256d cd_even = _mm256_unpacklo_pd(c, d);
            const __m256d cd_odd = _mm256_unpackhi_pd(c, d);
            const __m256d transposed[4] = {_mm256_permute2f128_pd(ab_even, cd_even, 0x20),
                                           _mm256_permute2f128_pd(ab_odd, cd_odd, 0x20),
                                           _mm256_permute2f128_pd(ab_even, cd_even, 0x31),
                                           _mm256_permute2f128_pd(ab_odd, cd_odd, 0x31)};
            for (std::int64_t r = 0; r < 4; ++r) {
                const __m256d upper = _mm256_loadu_pd(distances + (i + r) * n + j);
                valid = _mm256_and_pd(valid, _mm256_cmp_pd(upper, zero, _CMP_GE_OQ));
                valid = _mm256_and_pd(valid, _mm256_cmp_pd(upper, transposed[r], _CMP_EQ_OQ));
            }
        }
    }
    return _mm256_movemask_pd(valid) == 0xF &&
           is_valid_block(distances, n, four_rows, {four_cols.last, cols.last}) &&
           is_valid_block(distances, n, {four_rows.last, rows.last}, cols);
}

}  // namespace dkn
#endif
