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

#include "dense_scans.hpp"
#include "disjoint_sets.hpp"

namespace dkn {
namespace {

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
        last =
            std::remove_if(middle, last, [&](const Edge& edge) { return builder.is_inner(edge); });
        first = middle;
        count *= 2;
    }
    return builder.take();
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
        message << "distances must be 0 or more and not nan; got " << digits(first ? upper : lower)
                << " at " << (first ? at(i, j) : at(j, i));
    }
    throw std::invalid_argument(message.str());
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
            throw std::invalid_argument("edges must join points 0 <= i < j < " + std::to_string(n) +
                                        "; got " + at(edge.i, edge.j));
        }
        if (!(edge.value >= 0.0)) {
            throw std::invalid_argument("values must be 0 or more and not nan; got " +
                                        std::to_string(edge.value));
        }
    }
}

}  // namespace dkn
