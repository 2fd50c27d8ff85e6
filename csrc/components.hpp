#pragma once

#include <cstdint>
#include <vector>

#include "merge_tree.hpp"

namespace dkn {

// The components of a merge forest cut at a given height, in the order of their births (those of
// one height in the order of the forest's nodes), so that a parent comes after its children.
struct Components {
    std::vector<double> births;
    // Height at which the parent is born, or the end of the filtration for a root.
    std::vector<double> deaths;
    std::vector<std::int32_t> sizes;
    // -1 for a root.
    std::vector<std::int32_t> parents;
    // The smallest component of each point, -1 for none. A component's points are those labelled
    // with itself or a component below it.
    std::vector<std::int32_t> labels;
};

// Merges above `end` never happen. Merges of one height are one merge of several parts, so that
// ties leave nothing to the order of the points. Condensed: a merge of two or more parts of at
// least min_size points ends them and starts a component; a merge of one such part with smaller
// ones continues it; a merge of smaller parts that reaches min_size starts a component. Otherwise
// every merge that reaches min_size starts a component and ends those it joins. With a min_size of
// 1, points are components born at 0.
Components find_components(const MergeTree& tree, std::int64_t min_size, bool condensed,
                           double end);

// Throws std::invalid_argument unless sizes are consistent, heights ascend and every node is the
// child of at most one later merge.
void check_tree(const MergeTree& tree);

}  // namespace dkn
