#include "merge_tree.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "disjoint_sets.hpp"
#include "cpu_targets.hpp"

#ifdef DKN_HAS_X86_TARGETS
#include <immintrin.h>
#endif

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Builds a tree from edges offered in their total order, skipping those within a component.
class TreeBuilder {
public:
    explicit TreeBuilder(std::int64_t n) : sets_(n), nodes_(static_cast<std::size_t>(n)) {
        tree_.n = n;
        std::iota(nodes_.begin(), nodes_.end(), 0);
    }

    bool is_inner(const Edge& edge) { return sets_.find(edge.i) == sets_.find(edge.j); }

    void offer(const Edge& edge) {
        const std::int32_t a = sets_.find(edge.i);
        const std::int32_t b = sets_.find(edge.j);
        if (a == b) {
            return;
        }
        const auto [left, right] =
            std::minmax(nodes_[static_cast<std::size_t>(a)], nodes_[static_cast<std::size_t>(b)]);
        tree_.children.push_back({left, right});
        tree_.heights.push_back(edge.value);
        const std::int32_t root = sets_.unite(a, b);
        tree_.sizes.push_back(sets_.size(root));
        const auto merges = static_cast<std::int64_t>(tree_.heights.size());
        nodes_[static_cast<std::size_t>(root)] = static_cast<std::int32_t>(tree_.n + merges - 1);
    }

    bool is_connected() const {
        return static_cast<std::int64_t>(tree_.heights.size()) + 1 >= tree_.n;
    }

    MergeTree take() { return std::move(tree_); }

private:
    MergeTree tree_;
    DisjointSets sets_;
    std::vector<std::int32_t> nodes_;
};

// Kruskal's algorithm that sorts no more than it has to: after the shortest edges, those of the
// others that lie within a component are dropped (Osipov, Sanders and Singler,
// https://doi.org/10.1137/1.9781611972894.5).
MergeTree merge_shortest_first(std::int64_t n, std::vector<Edge> edges) {
    TreeBuilder builder(n);
    std::int64_t count = std::max<std::int64_t>(2 * n, 64);
    auto first = edges.begin();
    auto last = edges.end();
    while (first != last && !builder.is_connected()) {
        const auto middle = last - first > 2 * count ? first + count : last;
        if (middle != last) {
            std::nth_element(first, middle, last);
        }
        std::sort(first, middle);
        std::for_each(first, middle, [&](const Edge& edge) { builder.offer(edge); });
        last = std::remove_if(middle, last,
                              [&](const Edge& edge) { return builder.is_inner(edge); });
        first = middle;
        count *= 2;
    }
    return builder.take();
}

// For each point outside Prim's tree the shortest edge found so far to a point of the tree: its
// length and that point. A point of the tree has length nan, with which every comparison is false.
struct Links {
    std::vector<double> lengths;
    std::vector<std::int32_t> from;

    explicit Links(std::int64_t n)
        : lengths(static_cast<std::size_t>(n), infinity), from(static_cast<std::size_t>(n), 0) {}

    std::int64_t size() const { return static_cast<std::int64_t>(lengths.size()); }

    // Takes an edge to the point that has just joined. Of two equally long edges to one point, the
    // one from the smaller point comes first in the total order, whichever side they lie on.
    void offer(std::int64_t k, double value, std::int32_t joined) {
        double& length = lengths[static_cast<std::size_t>(k)];
        std::int32_t& origin = from[static_cast<std::size_t>(k)];
        if (value < length || (value == length && joined < origin)) {
            length = value;
            origin = joined;
        }
    }

    Edge edge(std::int64_t k) const {
        const auto at = static_cast<std::size_t>(k);
        return make_edge(lengths[at], static_cast<std::int32_t>(k), from[at]);
    }
};

// Updates links [first, n) with the row of the point that has just joined; returns the least of
// their lengths.
double relax_from(std::int64_t first, Links& links, const double* row, std::int32_t joined) {
    double least = infinity;
    for (std::int64_t k = first; k < links.size(); ++k) {
        links.offer(k, row[k], joined);
        least = std::min(least, links.lengths[static_cast<std::size_t>(k)]);
    }
    return least;
}

// The first in the total order of `before` and the links [first, n) of this length.
Edge first_link_from(std::int64_t first, const Links& links, double length, Edge before) {
    for (std::int64_t k = first; k < links.size(); ++k) {
        if (links.lengths[static_cast<std::size_t>(k)] == length) {
            before = std::min(before, links.edge(k));
        }
    }
    return before;
}

constexpr Edge no_edge{infinity, 0, 0};

// Updates all links with the row of the point that has just joined; returns the first of them in
// the total order, of infinite length if there is none.
using Relax = Edge (*)(Links&, const double*, std::int32_t);

Edge relax(Links& links, const double* row, std::int32_t joined) {
    const double least = relax_from(0, links, row, joined);
    return least < infinity ? first_link_from(0, links, least, no_edge) : no_edge;
}

#ifdef DKN_HAS_X86_TARGETS
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
    const double least = std::min(*std::min_element(lanes, lanes + 4),
                                  relax_from(whole, links, row, joined));
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
#endif

Relax best_relax() {
#ifdef DKN_HAS_X86_TARGETS
    if (__builtin_cpu_supports("avx2")) {
        return relax_avx2;
    }
#endif
    return relax;
}

std::string at(std::int64_t i, std::int64_t j) {
    return "[" + std::to_string(i) + ", " + std::to_string(j) + "]";
}

// The fewest digits, from six on, that tell the number from every other one.
std::string digits(double number) {
    constexpr int fewest = 6;
    constexpr int most = std::numeric_limits<double>::max_digits10;
    std::string text;
    for (int precision = fewest; precision <= most; ++precision) {
        std::ostringstream stream;
        stream.precision(precision);
        stream << number;
        text = stream.str();
        if (std::strtod(text.c_str(), nullptr) == number) {
            break;
        }
    }
    return text;
}

void check_pair(double upper, double lower, std::int64_t i, std::int64_t j) {
    // Written so that nan fails too.
    if (upper >= 0.0 && upper == lower) {
        return;
    }
    std::ostringstream message;
    if (upper >= 0.0 && lower >= 0.0) {
        message << "distances must be symmetric; got " << digits(upper) << " at " << at(i, j)
                << " and " << digits(lower) << " at " << at(j, i);
    } else {
        const bool first = !(upper >= 0.0);
        message << "distances must be 0 or more and not nan; got "
                << digits(first ? upper : lower) << " at " << (first ? at(i, j) : at(j, i));
    }
    throw std::invalid_argument(message.str());
}

struct Range {
    std::int64_t first;
    std::int64_t last;
};

// Whether all pairs i < j of the block are valid; written so that nan fails.
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

using IsValidBlock = bool (*)(const double*, std::int64_t, Range, Range);

#ifdef DKN_HAS_X86_TARGETS
// Asks for 4 rows of the block that is checked next: each is on another page.
void prefetch_rows(const double* first, std::int64_t n, std::int64_t length) {
    for (std::int64_t r = 0; r < 4; ++r) {
        for (std::int64_t k = 0; k < length; k += 8) {
            _mm_prefetch(reinterpret_cast<const char*>(first + r * n + k), _MM_HINT_T1);
        }
    }
}

// The same for four rows and columns at a time, where they lie above the diagonal.
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
#endif

IsValidBlock best_is_valid_block() {
#ifdef DKN_HAS_X86_TARGETS
    if (__builtin_cpu_supports("avx2")) {
        return is_valid_block_avx2;
    }
#endif
    return is_valid_block;
}

void check_block(const double* distances, std::int64_t n, Range rows, Range cols) {
    for (std::int64_t i = rows.first; i < rows.last; ++i) {
        for (std::int64_t j = std::max(cols.first, i + 1); j < cols.last; ++j) {
            check_pair(distances[i * n + j], distances[j * n + i], i, j);
        }
    }
}

}  // namespace

MergeTree merge_edges(std::int64_t n, std::vector<Edge> edges) {
    edges.erase(std::remove_if(edges.begin(), edges.end(),
                               [](const Edge& edge) { return edge.value == infinity; }),
                edges.end());
    return merge_shortest_first(n, std::move(edges));
}

MergeTree merge_dense(const double* distances, std::int64_t n) {
    Links links(n);
    const Relax relax_links = best_relax();
    std::vector<Edge> edges;
    std::int64_t joined = 0;
    std::int64_t first_outside = 0;
    const auto is_outside = [&](std::int64_t k) {
        return !std::isnan(links.lengths[static_cast<std::size_t>(k)]);
    };
    for (std::int64_t round = 0; round + 1 < n; ++round) {
        links.lengths[static_cast<std::size_t>(joined)] = nan;
        const Edge edge =
            relax_links(links, distances + joined * n, static_cast<std::int32_t>(joined));
        if (edge.value < infinity) {
            edges.push_back(edge);
            joined = is_outside(edge.i) ? edge.i : edge.j;
        } else {
            // The component is complete and any point outside starts the next one.
            while (!is_outside(first_outside)) {
                ++first_outside;
            }
            joined = first_outside;
        }
    }
    return merge_shortest_first(n, std::move(edges));
}

void check_distances(const double* distances, std::int64_t n) {
    if (n > max_points) {
        throw std::invalid_argument("distances must have at most 2**30 rows; got " +
                                    std::to_string(n));
    }
    // In blocks, because one of the two elements of a pair is always a column away. A block that
    // fails is gone through again for the message.
    constexpr std::int64_t block = 64;
    const IsValidBlock is_valid = best_is_valid_block();
    for (std::int64_t i0 = 0; i0 < n; i0 += block) {
        for (std::int64_t j0 = i0; j0 < n; j0 += block) {
            const std::int64_t i1 = std::min(i0 + block, n);
            const std::int64_t j1 = std::min(j0 + block, n);
            if (!is_valid(distances, n, {i0, i1}, {j0, j1})) {
                check_block(distances, n, {i0, i1}, {j0, j1});
            }
        }
    }
}

void check_edges(std::int64_t n, const std::vector<Edge>& edges) {
    if (n < 0 || n > max_points) {
        throw std::invalid_argument("n must be from 0 to 2**30; got " + std::to_string(n));
    }
    for (const Edge& edge : edges) {
        if (!(0 <= edge.i && edge.i < edge.j && edge.j < n)) {
            throw std::invalid_argument("edges must join points 0 <= i < j < " +
                                        std::to_string(n) + "; got " + at(edge.i, edge.j));
        }
        if (!(edge.value >= 0.0)) {
            throw std::invalid_argument("values must be 0 or more and not nan; got " +
                                        std::to_string(edge.value));
        }
    }
}

}  // namespace dkn
