# %% [markdown]
"""
The first fact
==============

One question to the demo model, SmolLM2-135M-Instruct: which neurons is the answer attributed to,
which of them hang together, and do some groups of them cover for one another?
"""

# %%
import dkn_engine as dkn

model, tokenizer = dkn.load_model("demo")
result = dkn.find("The capital of France is", "Paris", model=model, tokenizer=tokenizer)
result

# %% [markdown]
# The **knowledge neurons** are those whose scores by integrated gradients exceed a tenth of the
# highest one. A neuron is written (layer, index). These are the five with the highest scores:

# %%
order = result.scores.argsort()[::-1]
for place in order[:5]:
    layer, index = result.neurons[place]
    print(f"layer {layer:2d}, neuron {index:4d}: score {result.scores[place]:.4f}")
print(f"{len(result.neurons)} knowledge neurons of {30 * 1536:,}")

# %% [markdown]
# Neurons of adjacent layers are joined by their connection weights. What stays together longest
# as weaker connections are let in is a **component**. In the picture layers go upwards, edges are
# as wide as the weights, and a ring marks the members of the DKN.

# %%
dkn.plot.graph(result)

# %% [markdown]
# The barcode: at which distance each component appears, and at which it merges with another.

# %%
dkn.plot.barcode(result)

# %% [markdown]
# All subsets of the components were suppressed, one after another. A family of components is
# **degenerate** if each of its members, with the others suppressed, keeps 70 % of the
# probability, while all suppressed leave at most 70 % of the weakest of those.

# %%
print(f"unchanged:       p = {result.probability:.2f}")
print(f"one left:        {1 - result.partial_drop:.0%} of it on average")
print(f"all suppressed:  {1 - result.full_drop:.0%} of it")
print(f"redundancy:      {result.redundancy:.2f} (1 if they were independent)")

# %% [markdown]
# What the DKN's two components do, alone and together:

# %%
fact = ("The capital of France is", "Paris")
first, second = (result.components[i].neurons for i in result.dkn)
suppressed = {"none": [], "C1": first, "C3": second, "both": [*first.tolist(), *second.tolist()]}
for name, neurons in suppressed.items():
    (p,) = dkn.answer_probability(model, tokenizer, fact, suppress=neurons)
    print(f"{name:>4} suppressed: p = {p:.2f}")

# %% [markdown]
# The same in an own forward pass: what does the model say with the DKN's neurons suppressed?

# %%
import numpy as np

dkn_neurons = np.concatenate([result.components[i].neurons for i in result.dkn])
tokens = tokenizer("The capital of France is", return_tensors="pt")


def next_words() -> str:
    last = model(**tokens).logits[0, -1].softmax(-1).topk(3)
    pairs = zip(last.indices.tolist(), last.values.tolist(), strict=True)
    return ", ".join(f"{tokenizer.decode([i]).strip()} {p:.2f}" for i, p in pairs)


print("unchanged: ", next_words())
with dkn.intervene(model, dkn_neurons):
    print("suppressed:", next_words())
