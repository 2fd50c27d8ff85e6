#include "merge_tree.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

class DisjointSets {
public:
    explicit DisjointSets(std::int64_t n)
        : parents_(static_cast<std::size_t>(n)), sizes_(static_cast<std::size_t>(n), 1) {
        std::iota(parents_.begin(), parents_.end(), 0);
    }

    std::int32_t find(std::int32_t x) {
        while (parent(x) != x) {
            parent(x) = parent(parent(x));
            x = parent(x);
        }
        return x;
    }

    // Unites two roots and returns the root of both.
    std::int32_t unite(std::int32_t a, std::int32_t b) {
        if (size(a) < size(b)) {
            std::swap(a, b);
        }
        parent(b) = a;
        sizes_[static_cast<std::size_t>(a)] += size(b);
        return a;
    }

    std::int32_t size(std::int32_t root) const { return sizes_[static_cast<std::size_t>(root)]; }

private:
    std::int32_t& parent(std::int32_t x) { return parents_[static_cast<std::size_t>(x)]; }

    std::vector<std::int32_t> parents_;
    std::vector<std::int32_t> sizes_;
};

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

Edge make_edge(double value, std::int32_t a, std::int32_t b) {
    return {value, std::min(a, b), std::max(a, b)};
}

// The shortest edge found so far from the tree to a point outside it.
struct Link {
    double value;
    std::int32_t point;
    std::int32_t from;
};

bool is_shorter(const Link& a, const Link& b) {
    if (a.value != b.value || a.value == infinity) {
        return a.value < b.value;
    }
    return make_edge(a.value, a.point, a.from) < make_edge(b.value, b.point, b.from);
}

// Updates every link with the row of the point that has just joined; returns the shortest link.
std::size_t relax(std::vector<Link>& links, const double* row, std::int32_t joined) {
    std::size_t shortest = 0;
    double least = infinity;
    for (std::size_t k = 0; k < links.size(); ++k) {
        Link& link = links[k];
        const double value = row[link.point];
        // Of two equally long edges to one point, the one from the smaller point comes first in
        // the total order, whichever side of the point they lie on.
        if (value <= link.value && (value < link.value || joined < link.from)) {
            link.value = value;
            link.from = joined;
        }
        if (link.value <= least && (link.value < least || is_shorter(link, links[shortest]))) {
            least = link.value;
            shortest = k;
        }
    }
    return shortest;
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
    std::vector<Link> links;
    for (std::int64_t j = n - 1; j > 0; --j) {
        links.push_back({infinity, static_cast<std::int32_t>(j), 0});
    }
    std::vector<Edge> edges;
    std::int32_t joined = 0;
    while (!links.empty()) {
        const std::size_t shortest = relax(links, distances + joined * n, joined);
        const Link link = links[shortest];
        // An infinite shortest link: the component is complete and the point starts the next one.
        if (link.value < infinity) {
            edges.push_back(make_edge(link.value, link.point, link.from));
        }
        joined = link.point;
        links[shortest] = links.back();
        links.pop_back();
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
