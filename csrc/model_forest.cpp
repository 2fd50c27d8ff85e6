#include "model_forest.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "parallel.hpp"

namespace dkn {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
// Every comparison with it is false: no weight reaches a list that is not asked for.
constexpr double never = std::numeric_limits<double>::quiet_NaN();
// After every edge.
constexpr Edge no_edge{infinity, std::numeric_limits<std::int32_t>::max(),
                       std::numeric_limits<std::int32_t>::max()};

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// Every weight whose distance is at most `value`, rounding included, has at least this absolute
// value.
double least_weight_within(double value) {
    return std::min(1.0 / value, std::numeric_limits<double>::max()) * (1.0 - 0x1p-48);
}

// The first `capacity` connections offered, in their total order.
class Strongest {
public:
    explicit Strongest(std::int64_t capacity)
        : capacity_(index(capacity)), least_weight_(capacity > 0 ? 0.0 : never) {}

    double least_weight() const { return least_weight_; }

    void offer(const Connection& connection) {
        if (heap_.size() == capacity_) {
            if (!(connection < heap_.front())) {
                return;
            }
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
        }
        heap_.push_back(connection);
        std::push_heap(heap_.begin(), heap_.end());
        if (heap_.size() == capacity_) {
            least_weight_ = least_weight_within(heap_.front().edge.value);
        }
    }

    const std::vector<Connection>& connections() const { return heap_; }

private:
    std::size_t capacity_;
    double least_weight_;
    std::vector<Connection> heap_;
};

}  // namespace

void NearestLists::resize(std::int64_t n) {
    values_.resize(index(n) * capacity_);
    others_.resize(index(n) * capacity_);
    sizes_.resize(index(n), 0);
    least_weights_.resize(index(n), 0.0);
}

void NearestLists::clear(std::int64_t v) {
    sizes_[index(v)] = 0;
    least_weights_[index(v)] = 0.0;
}

void NearestLists::set_least_weight(std::int64_t v, double weight) {
    least_weights_[index(v)] = weight;
}

Edge NearestLists::edge(std::int64_t v, std::int64_t k) const {
    return make_edge(value(v, k), static_cast<std::int32_t>(v), other(v, k));
}

void NearestLists::offer(std::int64_t v, double new_value, std::int32_t new_other) {
    // Edges of one point are in their total order if they are in that of (value, other end).
    const auto precedes = [&](std::int64_t k) {
        return new_value < value(v, k) || (new_value == value(v, k) && new_other < other(v, k));
    };
    std::int64_t k = size(v);
    if (is_full(v)) {
        if (!precedes(k - 1)) {
            return;
        }
        --k;
    } else {
        ++sizes_[index(v)];
    }
    for (; k > 0 && precedes(k - 1); --k) {
        values_[at(v, k)] = values_[at(v, k - 1)];
        others_[at(v, k)] = others_[at(v, k - 1)];
    }
    values_[at(v, k)] = new_value;
    others_[at(v, k)] = new_other;
    if (is_full(v)) {
        least_weights_[index(v)] =
            std::max(least_weights_[index(v)], least_weight_within(value(v, size(v) - 1)));
    }
}

ModelForest::ModelForest(std::int64_t list_length, std::int64_t n_strongest)
    : n_strongest_(n_strongest), lists_(std::max<std::int64_t>(list_length, 1)) {
    if (list_length < 1) {
        throw std::invalid_argument("list_length must be at least 1; got " +
                                    std::to_string(list_length));
    }
    if (n_strongest < 0) {
        throw std::invalid_argument("n_strongest must be 0 or more; got " +
                                    std::to_string(n_strongest));
    }
}

void ModelForest::add_layer(std::int64_t width) {
    if (width < 0 || width > max_points - size()) {
        throw std::invalid_argument("all layers must have at most 2**30 neurons; got " +
                                    std::to_string(width) + " after " + std::to_string(size()));
    }
    Layer layer{size(), {}, {}};
    layer.all.resize(index(width));
    std::iota(layer.all.begin(), layer.all.end(), 0);
    layer.needed = layer.all;
    layers_.push_back(std::move(layer));
    offsets_.push_back(size() + width);
    lists_.resize(size());
    pairs_.resize(layers_.size() - 1);
    scanned_.resize(layers_.size() - 1, 0);
}

bool ModelForest::needs(std::int64_t lower) const {
    check_pair(lower);
    return first_pass_ || !layers_[index(lower)].needed.empty() ||
           !layers_[index(lower) + 1].needed.empty();
}

void ModelForest::check_pair(std::int64_t lower) const {
    if (lower < 0 || lower + 1 >= static_cast<std::int64_t>(layers_.size())) {
        throw std::invalid_argument("lower must be a layer below the last of " +
                                    std::to_string(layers_.size()) + "; got " +
                                    std::to_string(lower));
    }
}

template <typename T>
void ModelForest::scan(std::int64_t lower, Rows<T> w_out, Rows<T> w_in, std::int64_t n_threads) {
    check_pair(lower);
    if (n_threads < 1) {
        throw std::invalid_argument("n_threads must be at least 1; got " +
                                    std::to_string(n_threads));
    }
    if (scanned_[index(lower)]) {
        throw std::invalid_argument("lower must not have been scanned in this pass; got " +
                                    std::to_string(lower));
    }
    const Layer& below = layers_[index(lower)];
    const Layer& above = layers_[index(lower) + 1];
    check_rows("w_out", w_out, static_cast<std::int64_t>(below.all.size()), w_out.d);
    check_rows("w_in", w_in, static_cast<std::int64_t>(above.all.size()), w_out.d);
    const auto select = [](const std::vector<std::int32_t>& numbers) {
        return Selection{numbers.data(), static_cast<std::int64_t>(numbers.size())};
    };
    if (first_pass_) {
        scan_rectangle(lower, w_out, w_in, select(below.all), select(above.all), Side::both,
                       n_threads);
    } else {
        scan_rectangle(lower, w_out, w_in, select(below.needed), select(above.all), Side::lower,
                       n_threads);
        scan_rectangle(lower, w_out, w_in, select(below.all), select(above.needed), Side::upper,
                       n_threads);
    }
    scanned_[index(lower)] = 1;
}

// One thread's view of a rectangle of connections: it has the columns of its part for itself, and
// its own lists of the rows.
class ModelForest::Scanner {
public:
    Scanner(ModelForest& forest, std::int64_t lower, Selection rows, Selection cols, Side side)
        : strongest(forest.first_pass_ ? forest.n_strongest_ : 0),
          row_lists(forest.lists_.capacity()),
          totals(index(cols.size), 0.0),
          forest_(forest),
          rows_(rows),
          cols_(cols),
          first_row_(forest.layers_[index(lower)].first),
          first_col_(forest.layers_[index(lower) + 1].first),
          row_limits_(index(rows.size), never),
          col_limits_(index(cols.size), never) {
        row_lists.resize(rows.size);
        for (std::int64_t r = 0; side != Side::upper && r < rows.size; ++r) {
            row_limits_[index(r)] = forest.lists_.least_weight(first_row_ + rows[r]);
            row_lists.set_least_weight(r, row_limits_[index(r)]);
        }
        for (std::int64_t c = 0; side != Side::lower && c < cols.size; ++c) {
            col_limits_[index(c)] = forest.lists_.least_weight(first_col_ + cols[c]);
        }
    }

    // A tile of weights, as for_each_tile hands it out.
    void operator()(std::int64_t row, std::int64_t n_rows, std::int64_t col, std::int64_t n_cols,
                    const double* weights) {
        for (std::int64_t r = 0; r < n_rows; ++r) {
            const double* line = weights + r * tile_cols;
            const double row_limit =
                std::min(row_limits_[index(row + r)], strongest.least_weight());
            bool some_matter = false;
            for (std::int64_t c = 0; c < n_cols; ++c) {
                const double size = std::abs(line[c]);
                totals[index(col + c)] += size;
                some_matter |=
                    (size >= row_limit) | (size >= col_limits_[index(col + c)]) | std::isnan(size);
            }
            for (std::int64_t c = 0; some_matter && c < n_cols; ++c) {
                look_at(row + r, col + c, line[c]);
            }
        }
    }

    Strongest strongest;
    NearestLists row_lists;
    // Sums of absolute weights, one a column.
    std::vector<double> totals;

private:
    void look_at(std::int64_t r, std::int64_t c, double weight) {
        const double distance = to_distance(weight);
        const auto i = static_cast<std::int32_t>(first_row_ + rows_[r]);
        const auto j = static_cast<std::int32_t>(first_col_ + cols_[c]);
        if (distance == infinity ||
            (!forest_.first_pass_ && forest_.labels_[index(i)] == forest_.labels_[index(j)])) {
            return;
        }
        const double size = std::abs(weight);
        if (size >= row_limits_[index(r)]) {
            row_lists.offer(r, distance, j);
            row_limits_[index(r)] = row_lists.least_weight(r);
        }
        if (size >= col_limits_[index(c)]) {
            forest_.lists_.offer(j, distance, i);
            col_limits_[index(c)] = forest_.lists_.least_weight(j);
        }
        if (size >= strongest.least_weight()) {
            strongest.offer({{distance, i, j}, weight});
        }
    }

    ModelForest& forest_;
    Selection rows_;
    Selection cols_;
    std::int64_t first_row_;
    std::int64_t first_col_;
    // Absolute weights below these cannot enter the list of a row or column.
    std::vector<double> row_limits_;
    std::vector<double> col_limits_;
};

template <typename T>
void ModelForest::scan_rectangle(std::int64_t lower, Rows<T> w_out, Rows<T> w_in, Selection rows,
                                 Selection cols, Side side, std::int64_t n_threads) {
    n_dots_ += rows.size * cols.size;
    // Each thread has whole panels of columns. Lists and sums are the same for any number of
    // threads: the first few edges of a point do not depend on the order in which they are found,
    // and each column is summed by itself.
    const std::int64_t n_panels = (cols.size + tile_cols - 1) / tile_cols;
    const std::int64_t n_parts = std::max<std::int64_t>(1, std::min(n_threads, n_panels));
    std::vector<Scanner> scanners;
    std::vector<Selection> parts;
    for (std::int64_t t = 0; t < n_parts; ++t) {
        const auto border = [&](std::int64_t part) {
            return std::min(part * n_panels / n_parts * tile_cols, cols.size);
        };
        parts.push_back(cols.part(border(t), border(t + 1) - border(t)));
        scanners.emplace_back(*this, lower, rows, parts.back(), side);
    }
    parallel_for(scanners.size(), scanners.size(), [&](std::size_t t) {
        for_each_tile(w_out, rows, w_in, parts[t], [&](auto... tile) { scanners[t](tile...); });
    });
    collect(lower, rows, scanners);
}

void ModelForest::collect(std::int64_t lower, Selection rows,
                          const std::vector<Scanner>& scanners) {
    const std::int64_t first_row = layers_[index(lower)].first;
    PairSummary& pair = pairs_[index(lower)];
    for (const Scanner& scanner : scanners) {
        for (std::int64_t r = 0; r < rows.size; ++r) {
            for (std::int64_t k = 0; k < scanner.row_lists.size(r); ++k) {
                lists_.offer(first_row + rows[r], scanner.row_lists.value(r, k),
                             scanner.row_lists.other(r, k));
            }
        }
        if (first_pass_) {
            const auto& found = scanner.strongest.connections();
            pair.strongest.insert(pair.strongest.end(), found.begin(), found.end());
            pair.total = std::accumulate(scanner.totals.begin(), scanner.totals.end(), pair.total);
        }
    }
    std::sort(pair.strongest.begin(), pair.strongest.end());
    pair.strongest.resize(std::min(pair.strongest.size(), index(n_strongest_)));
}

bool ModelForest::contract() {
    for (std::size_t lower = 0; lower < scanned_.size(); ++lower) {
        if (!scanned_[lower] && needs(static_cast<std::int64_t>(lower))) {
            throw std::invalid_argument(
                "every pair that is needed must be scanned; got none of layer " +
                std::to_string(lower));
        }
        scanned_[lower] = 0;
    }
    if (first_pass_) {
        sets_ = DisjointSets(size());
        labels_.resize(index(size()));
        first_pass_ = false;
    }
    std::vector<char> is_certain;
    std::vector<Edge> shortest;
    std::int32_t largest = 0;
    std::vector<Edge> certain;
    do {
        largest = relabel();
        shortest = shortest_edges(largest, is_certain);
        certain.clear();
        for (std::size_t c = 0; c < shortest.size(); ++c) {
            if (is_certain[c]) {
                certain.push_back(shortest[c]);
            }
        }
    } while (join(certain));
    bool complete = true;
    for (Layer& layer : layers_) {
        layer.needed.clear();
        for (std::int32_t k : layer.all) {
            const std::int64_t v = layer.first + k;
            const std::int32_t label = labels_[index(v)];
            // Full lists that end before the shortest edge found for the component: a shorter one
            // may have been left out.
            if (label != largest && lists_.is_full(v) &&
                lists_.edge(v, lists_.size(v) - 1) < shortest[index(label)]) {
                layer.needed.push_back(k);
                complete = false;
            }
        }
        for (std::int32_t k : layer.needed) {
            lists_.clear(layer.first + k);
        }
    }
    return complete;
}

// Labels every point with the root of its component; returns that of the largest one.
std::int32_t ModelForest::relabel() {
    std::int32_t largest = 0;
    for (std::size_t v = 0; v < labels_.size(); ++v) {
        labels_[v] = sets_.find(static_cast<std::int32_t>(v));
        largest = sets_.size(labels_[v]) > sets_.size(largest) ? labels_[v] : largest;
    }
    return largest;
}

// The shortest edge found out of each component but the largest, at its label, and whether nothing
// that was left out of its points' lists can come before it.
std::vector<Edge> ModelForest::shortest_edges(std::int32_t largest, std::vector<char>& is_certain) {
    std::vector<Edge> shortest(labels_.size(), no_edge);
    std::vector<Edge> left_out(labels_.size(), no_edge);
    const auto lower_to = [&](std::vector<Edge>& edges, std::int32_t label, const Edge& edge) {
        if (label != largest) {
            edges[index(label)] = std::min(edges[index(label)], edge);
        }
    };
    for (std::int64_t v = 0; v < size(); ++v) {
        const std::int32_t label = labels_[index(v)];
        for (std::int64_t k = 0; k < lists_.size(v); ++k) {
            const std::int32_t other = labels_[index(lists_.other(v, k))];
            if (other != label) {
                lower_to(shortest, label, lists_.edge(v, k));
                lower_to(shortest, other, lists_.edge(v, k));
                break;
            }
        }
        if (lists_.is_full(v)) {
            lower_to(left_out, label, lists_.edge(v, lists_.size(v) - 1));
        }
    }
    is_certain.assign(labels_.size(), 0);
    for (std::size_t c = 0; c < labels_.size(); ++c) {
        is_certain[c] = shortest[c].value < infinity && !(left_out[c] < shortest[c]);
    }
    return shortest;
}

// Joins components along their shortest edges; two may have the same one.
bool ModelForest::join(std::vector<Edge>& shortest) {
    const std::size_t before = edges_.size();
    for (const Edge& edge : shortest) {
        const std::int32_t a = sets_.find(edge.i);
        const std::int32_t b = sets_.find(edge.j);
        if (a != b) {
            sets_.unite(a, b);
            edges_.push_back(edge);
        }
    }
    return edges_.size() > before;
}

std::vector<Edge> ModelForest::edges() const {
    std::vector<Edge> sorted = edges_;
    std::sort(sorted.begin(), sorted.end());
    return sorted;
}

template void ModelForest::scan(std::int64_t, Rows<float>, Rows<float>, std::int64_t);
template void ModelForest::scan(std::int64_t, Rows<double>, Rows<double>, std::int64_t);

}  // namespace dkn
