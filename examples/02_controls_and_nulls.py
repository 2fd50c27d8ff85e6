# %% [markdown]
"""
Controls and nulls
==================

That suppressed neurons lower a probability proves little. What would other neurons, other prompts
or chance have done? Three facts of the demo model, and what stands beside each figure.
"""

# %%
import dkn_engine as dkn

model, tokenizer = dkn.load_model("demo")
wanted = {"capital-germany", "capital-france", "continent-poland"}
facts = [fact for fact in dkn.load_facts("demo") if fact.id in wanted]
results = dkn.find_dkns(model, tokenizer, facts)
results

# %% [markdown]
# **Controls.** The same suppression of *random* neurons, as many in each layer and none of the
# fact's own; on *paraphrases* that were not used for finding; on *unrelated* facts; and with the
# mean activation instead of zero. The full drop is the share of the probability that is lost with
# all components of the DKN suppressed (of all candidates, where a fact has no DKN).

# %%
print(f"{'fact':18} {'own':>6} " + " ".join(f"{name:>13}" for name in results[0].controls))
for r in results:
    controls = " ".join(f"{drops.full_drop:13.2f}" for drops in r.controls.values())
    print(f"{r.fact_id:18} {r.full_drop:6.2f} {controls}")

# %% [markdown]
# **Redundancy** is the log-drop of all suppressed over the sum of the log-drops of each alone: 1
# if components are independent, above 1 if they cover for one another. A partial drop below the
# full drop proves nothing by itself, since independent components show that too.

# %%
for r in results:
    held_out = r.controls["paraphrases"].redundancy
    kind = "DKN" if r.is_degenerate else "no DKN"
    print(f"{r.fact_id:18} {kind:7} redundancy {r.redundancy:.2f}, on paraphrases {held_out:.2f}")

# %% [markdown]
# **What chance finds.** The fact's own neurons are put into groups of the same sizes and layers
# at random, and through the same filter, eight times. If random groups pass as often, the
# grouping by topology says nothing about this fact.

# %%
summary = results.summary()
print("draws for each fact:", summary.chance.draws)
print("facts with a DKN:", summary.chance.found)
print("expected by chance:", summary.chance.expected)

# %% [markdown]
# Three facts have no interval: below six the engine prints none. Of all 33 facts the packaged run
# in ``docs/example`` and README have the figures, with intervals.

# %%
dkn.plot.subsets(results["capital-germany"])
