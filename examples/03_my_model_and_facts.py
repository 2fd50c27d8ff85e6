# %% [markdown]
"""
My model and facts
==================

Any causal decoder of transformers, by hub id, folder or as a loaded object; facts as pairs,
dicts, a data frame or a file. Here the demo model stands for yours.
"""

# %%
import tempfile
from pathlib import Path

import dkn_engine as dkn

model, tokenizer = dkn.load_model("demo")  # or "gpt2", or "path/to/folder"

facts = [
    {
        "id": "italy",
        "prompt": "The capital of Italy is",
        "answer": "Rome",
        "paraphrases": ["The capital city of Italy is", "Italy is a country whose capital is"],
    },
    {"id": "france", "prompt": "The capital of France is", "answer": "Paris"},
    {"id": "nonsense", "prompt": "The capital of Atlantis is", "answer": "Poseidonis"},
]

# %% [markdown]
# Is a fact known at all? The answer's first token must be the most probable one, with p of 0.05
# or more. What is not known is not examined.

# %%
for fact, p in zip(facts, dkn.answer_probability(model, tokenizer, facts), strict=True):
    print(f"{fact['prompt']} {fact['answer']}: p = {p:.4f}")

# %% [markdown]
# Settings by their names; ``dkn-engine settings`` lists them all. A run directory keeps what was
# found, and the same call goes on where a run was stopped.

# %%
config = dkn.Config().set("selection.threshold", 0.2)
out = Path(tempfile.mkdtemp()) / "mine"
results = dkn.find_dkns(model, tokenizer, facts, config, out)
results

# %% [markdown]
# As tables of pandas: ``facts``, ``neurons``, ``components`` or ``subsets``.

# %%
results.to_pandas("neurons").head()

# %% [markdown]
# Which neurons serve more than one fact?

# %%
shared = {neuron: ids for neuron, ids in results.neurons().items() if len(ids) > 1}
for (layer, index), ids in shared.items():
    print(f"layer {layer}, neuron {index}: {', '.join(ids)}")
print(len(shared), "shared neurons")

# %% [markdown]
# The same facts under the default threshold, beside these: what does the choice change?

# %%
comparison = dkn.compare(results, dkn.find_dkns(model, tokenizer, facts))
comparison

# %% [markdown]
# A page that needs no network:

# %%
page = results.report(out / "page.html")
print(page.name, f"{page.stat().st_size / 1000:.0f} kB")
