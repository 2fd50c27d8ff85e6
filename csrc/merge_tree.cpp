#include "merge_tree.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "disjoint_sets.hpp"
#include "targets.hpp"

#ifdef DKN_HAS_X86_TARGETS
#include <immintrin.h>
#endif

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Merges along edges in their total order, skipping those within a component.
MergeTree merge_sorted(std::int64_t n, const std::vector<Edge>& edges) {
    MergeTree tree;
    tree.n = n;
    DisjointSets sets(n);
    std::vector<std::int32_t> nodes(static_cast<std::size_t>(n));
    std::iota(nodes.begin(), nodes.end(), 0);
    for (const Edge& edge : edges) {
        const std::int32_t a = sets.find(edge.i);
        const std::int32_t b = sets.find(edge.j);
        if (a == b) {
            continue;
        }
        const auto [left, right] =
            std::minmax(nodes[static_cast<std::size_t>(a)], nodes[static_cast<std::size_t>(b)]);
        tree.children.push_back({left, right});
        tree.heights.push_back(edge.value);
        const std::int32_t root = sets.unite(a, b);
        tree.sizes.push_back(sets.size(root));
        const auto merges = static_cast<std::int64_t>(tree.heights.size());
        nodes[static_cast<std::size_t>(root)] = static_cast<std::int32_t>(n + merges - 1);
        if (merges == n - 1) {
            break;
        }
    }
    return tree;
}

// For each point outside Prim's tree the shortest edge found so far to a point of the tree: its
// length and that point. A point of the tree has length nan, with which every comparison is false.
struct Links {
    std::vector<double> lengths;
    // As wide as the lengths, so that both fit the same vector lanes.
    std::vector<std::int64_t> from;

    explicit Links(std::int64_t n)
        : lengths(static_cast<std::size_t>(n), infinity), from(static_cast<std::size_t>(n), 0) {}
};

// Updates links [first, n) with the row of the point that has just joined; returns the least of
// their lengths. Of two equally long edges to one point, the one from the smaller point comes first
// in the total order, whichever side of the point they lie on.
double relax_from(std::int64_t first, Links& links, const double* row, std::int64_t joined) {
    double least = infinity;
    for (std::size_t k = static_cast<std::size_t>(first); k < links.lengths.size(); ++k) {
        double& length = links.lengths[k];
        if (row[k] < length || (row[k] == length && joined < links.from[k])) {
            length = row[k];
            links.from[k] = joined;
        }
        least = length < least ? length : least;
    }
    return least;
}

using Relax = double (*)(Links&, const double*, std::int64_t);

double relax(Links& links, const double* row, std::int64_t joined) {
    return relax_from(0, links, row, joined);
}

#ifdef DKN_HAS_X86_TARGETS
// By hand: compilers turn the selections above into jumps.
[[gnu::target("avx2")]] double relax_avx2(Links& links, const double* row, std::int64_t joined) {
    double* lengths = links.lengths.data();
    std::int64_t* from = links.from.data();
    const auto n = static_cast<std::int64_t>(links.lengths.size());
    const __m256i from_here = _mm256_set1_epi64x(joined);
    __m256d least = _mm256_set1_pd(infinity);
    std::int64_t k = 0;
    for (; k + 4 <= n; k += 4) {
        const __m256d value = _mm256_loadu_pd(row + k);
        const __m256d length = _mm256_loadu_pd(lengths + k);
        auto* const origin = reinterpret_cast<__m256i*>(from + k);
        const __m256i old_origin = _mm256_loadu_si256(origin);
        const __m256d shorter = _mm256_cmp_pd(value, length, _CMP_LT_OQ);
        const __m256d equal = _mm256_cmp_pd(value, length, _CMP_EQ_OQ);
        const __m256d earlier = _mm256_castsi256_pd(_mm256_cmpgt_epi64(old_origin, from_here));
        const __m256d closer = _mm256_or_pd(shorter, _mm256_and_pd(equal, earlier));
        const __m256d updated = _mm256_blendv_pd(length, value, closer);
        _mm256_storeu_pd(lengths + k, updated);
        _mm256_storeu_si256(
            origin, _mm256_blendv_epi8(old_origin, from_here, _mm256_castpd_si256(closer)));
        least = _mm256_min_pd(updated, least);  // The second operand where the first is nan.
    }
    double lanes[4];
    _mm256_storeu_pd(lanes, least);
    return std::min(*std::min_element(lanes, lanes + 4), relax_from(k, links, row, joined));
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

// The first in the total order of the links of this length, which is finite and is there.
Edge first_link(const Links& links, double length) {
    Edge first{infinity, 0, 0};
    for (std::size_t k = 0; k < links.lengths.size(); ++k) {
        if (links.lengths[k] == length) {
            const Edge edge = make_edge(length, static_cast<std::int32_t>(k),
                                        static_cast<std::int32_t>(links.from[k]));
            first = std::min(first, edge);
        }
    }
    return first;
}

std::string at(std::int64_t i, std::int64_t j) {
    return "[" + std::to_string(i) + ", " + std::to_string(j) + "]";
}

void check_pair(double upper, double lower, std::int64_t i, std::int64_t j) {
    // Written so that nan fails too.
    if (upper >= 0.0 && upper == lower) {
        return;
    }
    std::ostringstream message;
    if (upper >= 0.0 && lower >= 0.0) {
        message << "distances must be symmetric; got " << upper << " at " << at(i, j) << " and "
                << lower << " at " << at(j, i);
    } else {
        const bool first = !(upper >= 0.0);
        message << "distances must be 0 or more and not nan; got " << (first ? upper : lower)
                << " at " << (first ? at(i, j) : at(j, i));
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
    std::sort(edges.begin(), edges.end());
    return merge_sorted(n, edges);
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
        const double least = relax_links(links, distances + joined * n, joined);
        if (least < infinity) {
            const Edge edge = first_link(links, least);
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
    std::sort(edges.begin(), edges.end());
    return merge_sorted(n, edges);
}

void check_distances(const double* distances, std::int64_t n) {
    if (n > max_points) {
        throw std::invalid_argument("distances must have at most 2**30 rows; got " +
                                    std::to_string(n));
    }
    // In blocks, because one of the two elements of a pair is always a column away. A block that
    // fails is gone through again for the message.
    constexpr std::int64_t block = 64;
    for (std::int64_t i0 = 0; i0 < n; i0 += block) {
        for (std::int64_t j0 = i0; j0 < n; j0 += block) {
            const std::int64_t i1 = std::min(i0 + block, n);
            const std::int64_t j1 = std::min(j0 + block, n);
            if (!is_valid_block(distances, n, {i0, i1}, {j0, j1})) {
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
