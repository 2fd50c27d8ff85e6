#include "components.hpp"

#include <sstream>
#include <stdexcept>
#include <string>

namespace dkn {
namespace {

constexpr std::int32_t none = -1;

class Builder {
public:
    Builder(const MergeTree& tree, std::int64_t min_size, bool condensed)
        : tree_(tree),
          min_size_(min_size),
          condensed_(condensed),
          alive_(static_cast<std::size_t>(tree.n) + tree.heights.size(), none) {
        result_.labels.assign(static_cast<std::size_t>(tree.n), none);
        if (min_size == 1) {
            for (std::int64_t i = 0; i < tree.n; ++i) {
                alive_[index(i)] = result_.labels[index(i)] = start(0.0);
                result_.sizes.back() = 1;
            }
        }
    }

    Components build(double end) {
        std::size_t first = 0;
        while (first < tree_.heights.size() && tree_.heights[first] <= end) {
            std::size_t last = first + 1;
            while (last < tree_.heights.size() && tree_.heights[last] == tree_.heights[first]) {
                ++last;
            }
            merge_level(first, last);
            first = last;
        }
        for (std::size_t c = 0; c < result_.parents.size(); ++c) {
            if (result_.parents[c] == none) {
                result_.deaths[c] = end;
            }
        }
        return result_;
    }

private:
    static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

    std::int32_t start(double birth) {
        result_.births.push_back(birth);
        result_.deaths.push_back(birth);
        result_.sizes.push_back(0);
        result_.parents.push_back(none);
        return static_cast<std::int32_t>(result_.births.size() - 1);
    }

    // All merges of one height: merges [first, last).
    void merge_level(std::size_t first, std::size_t last) {
        const std::int64_t level = tree_.n + static_cast<std::int64_t>(first);
        std::vector<char> inner(last - first, 0);
        for (std::size_t k = first; k < last; ++k) {
            for (std::int32_t child : tree_.children[k]) {
                if (child >= level) {
                    inner[index(child - level)] = 1;
                }
            }
        }
        for (std::size_t k = first; k < last; ++k) {
            if (!inner[k - first]) {
                merge_parts(k, level);
            }
        }
    }

    // The parts that come together at merge k: the nodes below it older than the level.
    std::vector<std::int32_t> parts_of(std::size_t k, std::int64_t level) const {
        std::vector<std::int32_t> parts;
        std::vector<std::int32_t> stack(tree_.children[k].begin(), tree_.children[k].end());
        while (!stack.empty()) {
            const std::int32_t node = stack.back();
            stack.pop_back();
            if (node < level) {
                parts.push_back(node);
                continue;
            }
            const auto& children = tree_.children[index(node - tree_.n)];
            stack.insert(stack.end(), children.begin(), children.end());
        }
        return parts;
    }

    void merge_parts(std::size_t k, std::int64_t level) {
        const std::vector<std::int32_t> parts = parts_of(k, level);
        std::int32_t component = none;
        std::int64_t n_alive = 0;
        for (std::int32_t part : parts) {
            if (alive_[index(part)] != none) {
                component = alive_[index(part)];
                ++n_alive;
            }
        }
        if (tree_.sizes[k] < min_size_) {
            return;
        }
        const double height = tree_.heights[k];
        if (!(condensed_ && n_alive == 1)) {
            component = start(height);
        }
        for (std::int32_t part : parts) {
            const std::int32_t previous = alive_[index(part)];
            if (previous == none) {
                label_points(part, component);
            } else if (previous != component) {
                result_.parents[index(previous)] = component;
                result_.deaths[index(previous)] = height;
            }
        }
        result_.sizes[index(component)] = tree_.sizes[k];
        alive_[index(tree_.n) + k] = component;
    }

    void label_points(std::int32_t top, std::int32_t component) {
        std::vector<std::int32_t> stack{top};
        while (!stack.empty()) {
            const std::int32_t node = stack.back();
            stack.pop_back();
            if (node < tree_.n) {
                result_.labels[index(node)] = component;
                continue;
            }
            const auto& children = tree_.children[index(node - tree_.n)];
            stack.insert(stack.end(), children.begin(), children.end());
        }
    }

    const MergeTree& tree_;
    std::int64_t min_size_;
    bool condensed_;
    // The living component of a node, or none while it is too small.
    std::vector<std::int32_t> alive_;
    Components result_;
};

[[noreturn]] void refuse(std::size_t k, const std::string& expected, double got) {
    std::ostringstream message;
    message << "tree must have " << expected << "; got " << got << " at merge " << k;
    throw std::invalid_argument(message.str());
}

}  // namespace

Components find_components(const MergeTree& tree, std::int64_t min_size, bool condensed,
                           double end) {
    return Builder(tree, min_size, condensed).build(end);
}

void check_tree(const MergeTree& tree) {
    const auto n = tree.n;
    const auto node_size = [&](std::int32_t node) {
        return node < n ? std::int64_t{1}
                        : std::int64_t{tree.sizes[static_cast<std::size_t>(node - n)]};
    };
    std::vector<char> used(static_cast<std::size_t>(n) + tree.heights.size(), 0);
    for (std::size_t k = 0; k < tree.heights.size(); ++k) {
        std::int64_t size = 0;
        for (std::int32_t child : tree.children[k]) {
            if (child < 0 || child >= n + static_cast<std::int64_t>(k) ||
                used[static_cast<std::size_t>(child)]) {
                refuse(k, "children that are older nodes, each used once", child);
            }
            used[static_cast<std::size_t>(child)] = 1;
            size += node_size(child);
        }
        if (tree.sizes[k] != size) {
            refuse(k, "sizes that are sums over children", tree.sizes[k]);
        }
        if (!(tree.heights[k] >= (k == 0 ? 0.0 : tree.heights[k - 1]))) {
            refuse(k, "heights that ascend from 0 or more", tree.heights[k]);
        }
    }
}

}  // namespace dkn
