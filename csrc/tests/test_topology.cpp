// Compares the core with brute force on small random graphs. No framework: prints
// "N passed, 0 failed" and exits with 1 on any failure.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "components.hpp"
#include "layer_graph.hpp"
#include "merge_tree.hpp"
#include "model_forest.hpp"
#include "parallel.hpp"

namespace {

using Part = std::set<int>;
constexpr double infinity = std::numeric_limits<double>::infinity();

struct Tally {
    int passed = 0;
    int failed = 0;

    void check(bool ok, const std::string& what) {
        (ok ? passed : failed) += 1;
        if (!ok) {
            std::cerr << "FAILED: " << what << '\n';
        }
    }
};

struct Graph {
    std::int64_t n;
    std::int64_t d;
    std::vector<std::int32_t> neurons;
    std::vector<float> w_out;
    std::vector<float> w_in;

    dkn::Neurons points() const { return {neurons.data(), n}; }
    dkn::Rows<float> out() const { return {w_out.data(), n, d}; }
    dkn::Rows<float> in() const { return {w_in.data(), n, d}; }
    int layer(int i) const { return neurons[static_cast<std::size_t>(2 * i)]; }
};

// Weights from a few whole numbers, so that zero weights (infinite distances) and ties are common.
Graph random_graph(std::mt19937& random) {
    Graph graph{static_cast<std::int64_t>(random() % 9),
                1 + static_cast<std::int64_t>(random() % 3),
                {},
                {},
                {}};
    for (std::int64_t i = 0; i < graph.n; ++i) {
        graph.neurons.push_back(static_cast<std::int32_t>(random() % 5));
        graph.neurons.push_back(static_cast<std::int32_t>(i));
    }
    const auto number = [&] { return static_cast<float>(static_cast<int>(random() % 7) - 3); };
    for (std::int64_t k = 0; k < graph.n * graph.d; ++k) {
        graph.w_out.push_back(number());
        graph.w_in.push_back(number());
    }
    return graph;
}

double hop(const Graph& graph, int a, int b) {
    double weight = 0.0;
    for (std::int64_t k = 0; k < graph.d; ++k) {
        weight += static_cast<double>(graph.w_out[static_cast<std::size_t>(a * graph.d + k)]) *
                  static_cast<double>(graph.w_in[static_cast<std::size_t>(b * graph.d + k)]);
    }
    return std::abs(1.0 / weight);
}

// Shortest path by following every path upwards.
double walk(const Graph& graph, int a, int target, double length) {
    if (a == target) {
        return length;
    }
    double best = infinity;
    for (int b = 0; b < graph.n; ++b) {
        if (graph.layer(b) == graph.layer(a) + 1) {
            best = std::min(best, walk(graph, b, target, length + hop(graph, a, b)));
        }
    }
    return best;
}

std::vector<double> brute_distances(const Graph& graph, int max_span) {
    std::vector<double> result(static_cast<std::size_t>(graph.n * graph.n), infinity);
    for (int a = 0; a < graph.n; ++a) {
        result[static_cast<std::size_t>(a * graph.n + a)] = 0.0;
        for (int b = 0; b < graph.n; ++b) {
            const int span = graph.layer(b) - graph.layer(a);
            if (span > 0 && (max_span == 0 || span <= max_span)) {
                const double length = walk(graph, a, b, 0.0);
                result[static_cast<std::size_t>(a * graph.n + b)] = length;
                result[static_cast<std::size_t>(b * graph.n + a)] = length;
            }
        }
    }
    return result;
}

std::set<Part> brute_partition(const std::vector<double>& distances, int n, double radius) {
    std::set<Part> parts;
    for (int first = 0; first < n; ++first) {
        Part part;
        std::vector<int> stack{first};
        while (!stack.empty()) {
            const int i = stack.back();
            stack.pop_back();
            if (!part.insert(i).second) {
                continue;
            }
            for (int j = 0; j < n; ++j) {
                if (distances[static_cast<std::size_t>(i * n + j)] <= radius) {
                    stack.push_back(j);
                }
            }
        }
        parts.insert(part);
    }
    return parts;
}

std::set<Part> tree_partition(const dkn::MergeTree& tree, double radius) {
    std::vector<Part> nodes;
    for (int i = 0; i < tree.n; ++i) {
        nodes.push_back({i});
    }
    for (std::size_t k = 0; k < tree.heights.size() && tree.heights[k] <= radius; ++k) {
        Part merged;
        for (std::int32_t child : tree.children[k]) {
            Part& part = nodes[static_cast<std::size_t>(child)];
            merged.insert(part.begin(), part.end());
            part.clear();
        }
        nodes.push_back(merged);
    }
    std::set<Part> parts(nodes.begin(), nodes.end());
    parts.erase(Part{});
    return parts;
}

bool same(const dkn::MergeTree& a, const dkn::MergeTree& b) {
    return a.n == b.n && a.children == b.children && a.heights == b.heights && a.sizes == b.sizes;
}

std::vector<dkn::Edge> all_edges(const std::vector<double>& distances, int n) {
    std::vector<dkn::Edge> edges;
    for (int i = 0; i < n; ++i) {
        for (int j = i + 1; j < n; ++j) {
            edges.push_back({distances[static_cast<std::size_t>(i * n + j)], i, j});
        }
    }
    return edges;
}

struct Life {
    double birth;
    double death;
    Part part;

    bool operator<(const Life& other) const {
        return std::tie(birth, death, part) < std::tie(other.birth, other.death, other.part);
    }
    bool operator==(const Life& other) const { return !(*this < other) && !(other < *this); }
};

// Components from the partitions at every height, without a tree.
std::multiset<Life> brute_components(const std::vector<double>& distances, int n,
                                     std::size_t min_size, bool condensed, double end) {
    std::set<double> heights;
    for (double value : distances) {
        if (value <= end && value < infinity) {
            heights.insert(value);
        }
    }
    heights.insert(0.0);
    std::multiset<Life> dead;
    std::vector<Life> alive;
    if (min_size == 1) {
        for (int i = 0; i < n; ++i) {
            alive.push_back({0.0, 0.0, {i}});
        }
    }
    for (double height : heights) {
        std::vector<Life> now;
        for (const Part& part : brute_partition(distances, n, height)) {
            std::vector<Life> below;
            std::copy_if(alive.begin(), alive.end(), std::back_inserter(below),
                         [&](const Life& life) { return part.count(*life.part.begin()) > 0; });
            const bool same_part = below.size() == 1 && below[0].part == part;
            if (same_part || (condensed && below.size() == 1)) {
                now.push_back({below[0].birth, 0.0, part});
            } else if (part.size() >= min_size) {
                now.push_back({height, 0.0, part});
                for (const Life& life : below) {
                    dead.insert({life.birth, height, life.part});
                }
            }
        }
        alive = now;
    }
    for (const Life& life : alive) {
        dead.insert({life.birth, end, life.part});
    }
    return dead;
}

std::multiset<Life> lives_of(const dkn::Components& found) {
    std::multiset<Life> lives;
    for (std::size_t c = 0; c < found.births.size(); ++c) {
        Part part;
        for (std::size_t i = 0; i < found.labels.size(); ++i) {
            std::int32_t up = found.labels[i];
            while (up >= 0 && up != static_cast<std::int32_t>(c)) {
                up = found.parents[static_cast<std::size_t>(up)];
            }
            if (up >= 0) {
                part.insert(static_cast<int>(i));
            }
        }
        lives.insert({found.births[c], found.deaths[c], part});
    }
    return lives;
}

// Every way recorded is as long as its distance says, and goes up one layer at a step.
void test_paths(const Graph& graph, int max_span, Tally& tally) {
    const int n = static_cast<int>(graph.n);
    const auto at = [&](int a, int b) { return static_cast<std::size_t>(a * n + b); };
    std::vector<double> distances(at(n, 0), std::nan(""));
    std::vector<std::int32_t> previous(at(n, 0), -7);
    dkn::layer_distances(graph.points(), graph.out(), graph.in(), max_span, distances.data(),
                         previous.data());
    tally.check(distances == brute_distances(graph, max_span), "distances with paths");
    for (int a = 0; a < n; ++a) {
        for (int b = 0; b < n; ++b) {
            const bool is_up = graph.layer(b) > graph.layer(a) && distances[at(a, b)] < infinity;
            const int p = previous[at(a, b)];
            tally.check((p >= 0) == is_up, "a way where there is one");
            if (p < 0) {
                continue;
            }
            const double before = p == a ? 0.0 : distances[at(a, p)];
            tally.check(graph.layer(p) == graph.layer(b) - 1 &&
                            before + hop(graph, p, b) == distances[at(a, b)],
                        "a way as long as the distance");
        }
    }
}

// All neurons of a stack of layers, as ModelForest takes it, against Kruskal on all edges.
void test_model(std::mt19937& random, Tally& tally) {
    const auto list_length = static_cast<std::int64_t>(1 + random() % 3);
    const auto n_threads = static_cast<std::int64_t>(1 + random() % 3);
    const auto n_layers = static_cast<int>(random() % 5);
    const int n_values = random() % 2 == 0 ? 7 : 1001;  // Many ties, or few.
    const auto number = [&] {
        return static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(n_values)) -
                                  n_values / 2);
    };
    Graph graph{0, 1 + static_cast<std::int64_t>(random() % 3), {}, {}, {}};
    dkn::ModelForest forest(list_length, 2);
    std::vector<std::int64_t> first{0};
    for (int layer = 0; layer < n_layers; ++layer) {
        const auto width = static_cast<std::int64_t>(random() % 20);
        forest.add_layer(width);
        for (std::int64_t i = 0; i < width; ++i) {
            graph.neurons.push_back(layer);
            graph.neurons.push_back(static_cast<std::int32_t>(i));
        }
        first.push_back(first.back() + width);
    }
    graph.n = first.back();
    for (std::int64_t k = 0; k < graph.n * graph.d; ++k) {
        graph.w_out.push_back(number());
        graph.w_in.push_back(number());
    }
    const auto rows = [&](const std::vector<float>& all, int layer) {
        const auto begin = first[static_cast<std::size_t>(layer)];
        const auto end = first[static_cast<std::size_t>(layer) + 1];
        return dkn::Rows<float>{all.data() + begin * graph.d, end - begin, graph.d};
    };
    int passes = 0;
    do {
        for (int lower = 0; lower + 1 < n_layers; ++lower) {
            if (forest.needs(lower)) {
                forest.scan(lower, rows(graph.w_out, lower), rows(graph.w_in, lower + 1),
                            n_threads);
            }
        }
        ++passes;
    } while (!forest.contract() && passes < 20);
    const dkn::MergeTree expected =
        dkn::merge_edges(graph.n, dkn::adjacent_edges(graph.points(), graph.out(), graph.in()));
    tally.check(same(dkn::merge_edges(graph.n, forest.edges()), expected), "model forest");
    tally.check(forest.edges().size() == expected.heights.size(), "no edge too many");
}

void test_graph(const Graph& graph, Tally& tally) {
    const int n = static_cast<int>(graph.n);
    dkn::check_layer_graph(graph.points(), graph.out(), graph.in());
    std::vector<double> distances(static_cast<std::size_t>(n * n), std::nan(""));
    for (int max_span : {1, 2, 3, 4, 0}) {
        dkn::layer_distances(graph.points(), graph.out(), graph.in(), max_span, distances.data(),
                             nullptr);
        tally.check(distances == brute_distances(graph, max_span), "distances");
        test_paths(graph, max_span, tally);
    }
    dkn::check_distances(distances.data(), n);
    const dkn::MergeTree tree =
        dkn::merge_edges(n, dkn::adjacent_edges(graph.points(), graph.out(), graph.in()));
    const dkn::MergeTree dense = dkn::merge_dense(distances.data(), n);
    tally.check(same(dense, dkn::merge_edges(n, all_edges(distances, n))), "Prim is Kruskal");
    tally.check(tree.heights == dense.heights, "long spans do not change heights");
    dkn::check_tree(tree);
    dkn::check_tree(dense);
    for (double radius : distances) {
        if (radius == infinity) {
            continue;
        }
        const std::set<Part> expected = brute_partition(distances, n, radius);
        tally.check(tree_partition(dense, radius) == expected, "partition of the dense tree");
        tally.check(tree_partition(tree, radius) == expected, "partition of the layered tree");
    }
    for (int min_size = 1; min_size <= 4; ++min_size) {
        for (bool condensed : {true, false}) {
            for (double end : {0.0, 0.2, 0.5, 1.0, 9.0}) {
                const auto found = dkn::find_components(tree, min_size, condensed, end);
                tally.check(lives_of(found) == brute_components(distances, n,
                                                                static_cast<std::size_t>(min_size),
                                                                condensed, end),
                            "components");
            }
        }
    }
}

void test_refusal(const std::function<void()>& call, const std::string& part, Tally& tally) {
    try {
        call();
        tally.check(false, "not refused: " + part);
    } catch (const std::invalid_argument& error) {
        const std::string message = error.what();
        tally.check(message.find(part) != std::string::npos, message + " lacks " + part);
    }
}

void test_refusals(Tally& tally) {
    const std::vector<double> asymmetric{0.0, 1.0, 2.0, 0.0};
    const std::vector<double> nearly{0.0, 0.1, std::nextafter(0.1, 1.0), 0.0};
    const std::vector<double> negative{0.0, -1.0, -1.0, 0.0};
    const std::vector<double> nan{0.0, 1.0, std::nan(""), 0.0};
    test_refusal([&] { dkn::check_distances(asymmetric.data(), 2); }, "got 1 at [0, 1]", tally);
    test_refusal([&] { dkn::check_distances(nearly.data(), 2); },
                 "got 0.1 at [0, 1] and 0.10000000000000002 at [1, 0]", tally);
    test_refusal([&] { dkn::check_distances(negative.data(), 2); }, "got -1 at [0, 1]", tally);
    test_refusal([&] { dkn::check_distances(nan.data(), 2); }, "nan at [1, 0]", tally);
    test_refusal([&] { dkn::check_edges(2, {{1.0, 0, 2}}); }, "got [0, 2]", tally);
    test_refusal([&] { dkn::check_edges(2, {{std::nan(""), 0, 1}}); }, "got nan", tally);
    Graph graph{2, 1, {0, 3, 0, 3}, {1.0F, 1.0F}, {1.0F, 1.0F}};
    const auto check = [&] { dkn::check_layer_graph(graph.points(), graph.out(), graph.in()); };
    test_refusal(check, "got (0, 3) twice", tally);
    graph.neurons[0] = 1;
    graph.w_in[1] = std::numeric_limits<float>::infinity();
    test_refusal(check, "w_in must be finite; got inf at [1, 0]", tally);
}

void test_threads(Tally& tally) {
    std::vector<int> done(1000, 0);
    dkn::parallel_for(done.size(), 4, [&](std::size_t i) { done[i] += 1; });
    tally.check(done == std::vector<int>(1000, 1), "every item is done once");
    test_refusal(
        [] {
            dkn::parallel_for(100, 3, [](std::size_t i) {
                if (i == 50) {
                    throw std::invalid_argument("item 50");
                }
            });
        },
        "item 50", tally);
}

}  // namespace

int main() {
    Tally tally;
    std::mt19937 random(20241);
    for (int trial = 0; trial < 400; ++trial) {
        test_graph(random_graph(random), tally);
        test_model(random, tally);
    }
    test_refusals(tally);
    test_threads(tally);
    std::cout << tally.passed << " passed, " << tally.failed << " failed\n";
    return tally.failed == 0 ? 0 : 1;
}
