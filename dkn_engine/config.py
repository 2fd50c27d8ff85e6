"""Every choice of a run as frozen dataclasses: validated, readable from TOML or JSON, hashable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dkn_engine.errors import UserError
from dkn_engine.files.near_names import did_you_mean
from dkn_engine.files.sections import Section, count, dotted_keys, later, read_table

Blank = Literal["skip", "literal", "keep"]
Dates = Literal["auto", "prompt", "omit"]
Site = Literal["post", "pre", "up", "gate_act"]
Positions = Literal["answer", "answer_all", "all"]
AUTO, END_OF_TEXT = "auto", "end_of_text"
Backend = Literal["auto", "reference", "triton", "numba", "native"]
Method = Literal["integrated_gradients", "attribution_patching", "grad_drop", "relp"]


@dataclass(frozen=True, kw_only=True)
class FactsConfig(Section):
    """How facts become tokens.

    Attributes:
        blank: a blank that is not at the end is skipped and counted, or kept as literal text
            (the released code). ``keep``: every blank stays where it is, as the place that is
            asked; always so with an encoder, which needs no other.
        answer_masks: in an encoder an answer of several tokens takes as many masks. Each token is
            predicted with all of them masked, ``independent``, or with those before it filled in,
            ``left_to_right`` (Jiang et al. 2020, arXiv 2010.06189, "independent" and "order").
        decoder_writes: of an encoder-decoder. ``blank``: the encoder reads ``<extra_id_0>`` in the
            blank's place, the decoder writes that and the answer (T5's span corruption, arXiv
            1910.10683). ``text``: the encoder reads one mask token there, the decoder writes the
            whole sentence (BART's text infilling, arXiv 1910.13461). ``answer``: the encoder reads
            the prompt, the decoder writes the answer from its start token on (models that were
            fine-tuned). ``auto``: the first of these that the tokenizer has the tokens for.
        answer_space: tokenise the answer with the leading space of the tokenizer's convention.
        answer_special_tokens: count the tokenizer's special tokens as answer tokens (released).
        teacher_forced: continue with the answer's own tokens; otherwise with the model's greedy
            token (released). The next two are read only then.
        continuation: whose tokens follow where neurons are suppressed or enhanced: those of the
            ``clean`` model, or of each ``edited`` one; ``edited_text`` (released): each token's
            text is written behind the prompt's, and the whole is tokenised anew.
        repeat_first_token: scores (not probabilities) are taken with the first greedy token
            behind the prompt again and again, as often as the answer has got on (released).
        aliases: also accept an alias where its probability is higher.
        dates: where a fact's date goes as facts are read from files: ``prompt``, in front of its
            prompts ("In 2012, ..."); ``omit``, nowhere; ``auto``, into the
            prompts of TempLAMA's files, whose entries differ by it, and of no others.
    """

    blank: Blank = "skip"
    answer_masks: Literal["independent", "left_to_right"] = later("independent")
    decoder_writes: Literal["auto", "blank", "text", "answer"] = later("auto")
    answer_space: bool = True
    answer_special_tokens: bool = False
    teacher_forced: bool = True
    continuation: Literal["clean", "edited", "edited_text"] = "clean"
    repeat_first_token: bool = False
    aliases: bool = False
    dates: Dates = "auto"


@dataclass(frozen=True, kw_only=True)
class AttributionConfig(Section):
    """Integrated gradients of an answer's probability over MLP activations, or a cheaper score.

    Attributes:
        method: ``integrated_gradients``; or (x - x') times one gradient, at the unmodified
            activation (no path, no convergence delta): the model's own (``attribution_patching``),
            the mean size of those with each layer's part of the residual stream passing none on
            (``grad_drop``, of AtP*; no sign), or one by rules of relevance propagation (``relp``,
            site ``post`` only). See ``docs/one_pass.md`` for how they compare.
        site: ``post``, the input of the down projection; ``pre``, of the non-linearity; of gated
            MLPs, whose ``post`` is a product, also one factor with the other at its clean value:
            ``up``, the output of the up projection, or ``gate_act``, of the non-linearity. A
            baseline is always of the activation at the site itself.
        baseline: ``masked`` (mean activation with each prompt token masked in turn), ``zero``.
            ``given``: ``attribute`` and ``find_dkns`` take an array ``[L, F]`` or
            ``[n_facts, L, F]``, ``baselines=``.
        masked_tokens: which tokens are masked: the ``prompt``'s, or ``all`` before the one that
            is predicted, answer tokens too (released).
        mask_token: what masks a token: the text of one token; ``auto``: the tokenizer's mask token,
            else its end-of-text token (of chat models often the end of a turn, such as
            ``<|im_end|>``); ``end_of_text``: that one in any case (released). Scores depend on it.
        max_masked: mask at most so many of a prompt's tokens, spread evenly over it; None: each of
            them, at a cost that grows with the square of the prompt. Baseline ``masked`` only.
        quadrature: ``adaptive``, or a fixed rule with ``n_steps`` points. ``linspace`` is that of
            EleutherAI's ``knowledge-neurons``: points at equal distances, both ends among them, all
            of the weight 1 / n. It is first order as the Riemann sums are, for other tools' sake.
        tolerance: bound on the estimated relative L2 error of a fact's scores (adaptive). More
            points do not help against rounding: where that alone is more, ``converged`` is False.
        n_steps: points of a fixed rule; None with ``adaptive``.
        max_points: most points a layer (adaptive); where reached, ``converged`` is False.
        answer_tokens: how scores of several answer tokens are combined.
        positions: where activations are moved. ``answer``: at the position that predicts the token,
            the prompt's last or an answer token's; ``subject_last``: at the last token of the
            fact's ``subject`` in its prompt; ``all``: at every token of the prompt; or a list of
            the prompt's tokens, from 0 on, or from -1 back. Each position is moved alone, and the
            scores of several are summed. Others than ``answer`` are swept in blocks, which cost as
            many positions as there are from the moved one on; for :func:`dkn_engine.attribute`
            only, since DKNs' suppressions act at the answer.
        objective: ``probability`` of the gold token, its natural logarithm, its ``logit``; or
            ``logit_difference``, the answer's logit minus the mean of the fact's wrong answers',
            each by its own tokens, combined as ``answer_tokens`` says. Lattices and controls have
            the last three, where one is set, beside the probability, which decides.
        multiply_by: ``delta``, (x - x'); ``activation``, x; ``first_activation``, the x of the
            answer's first token for all its tokens (released). Completeness holds for ``delta``.
        routing: of mixtures of experts, whose activations are multiplied by the router's weight:
            ``frozen``: at the position that is attributed every layer's experts and their weights
            stay those of the clean pass, in masked copies and along the path, so that experts that
            it did not go to score 0; ``free``: they follow the router. Where experts change along a
            path its objective jumps, which gradients do not see: completeness is lost by as much.
        rows_per_batch: most path points a sweep holds at once, and most rows of edits of the
            filter; bounds memory. ``auto``: as many points as a GiB holds with their gradients, on
            a GPU as a quarter of its free memory does, up to 4,096; and 1,024 rows of edits,
            on a GPU as many as points if these are more.
        backend: which implementation of the operations; only ``auto`` may choose, an explicit name
            runs or raises a BackendError that says why not. ``reference``: plain torch.
            ``triton``: GPU kernels. ``numba``: compiled CPU loops in one thread for the path's
            points and the sum over them; attention and the answer's probability, which are matrix
            products, as under ``reference``. ``native``: always raises; C++ serves the topology.
    """

    method: Method = later("integrated_gradients")
    site: Site = "post"
    baseline: Literal["masked", "zero", "given"] = "masked"
    masked_tokens: Literal["prompt", "all"] = "prompt"
    mask_token: str = AUTO
    max_masked: int | None = None
    quadrature: Literal[
        "adaptive",
        "riemann_left",
        "riemann_middle",
        "riemann_right",
        "trapezoid",
        "linspace",
        "gauss_legendre",
    ] = "adaptive"
    tolerance: float = 1e-3
    n_steps: int | None = None
    max_points: int = count(512, least=7)
    answer_tokens: Literal["mean", "sum", "first"] = "mean"
    positions: Literal["answer", "subject_last", "all"] | tuple[int, ...] = later("answer")
    objective: Literal["probability", "log_probability", "logit", "logit_difference"] = (
        "probability"
    )
    multiply_by: Literal["delta", "activation", "first_activation"] = "delta"
    routing: Literal["frozen", "free"] = later("frozen")
    rows_per_batch: int | Literal["auto"] = count("auto")
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("tolerance", 0 < self.tolerance < 1, "between 0 and 1")
        if self.quadrature == "adaptive":
            self._require("n_steps", self.n_steps is None, "None with quadrature='adaptive'")
        else:
            fewest = 2 if self.quadrature in {"trapezoid", "linspace"} else 1
            ok = isinstance(self.n_steps, int) and self.n_steps >= fewest
            self._require("n_steps", ok, f"an integer of at least {fewest}")
        if self.method != "integrated_gradients":
            self._require_one_pass()
        self._require("mask_token", self.mask_token != "", "'auto' or the text of a token")
        ok = self.baseline == "masked" or self.mask_token == AUTO
        self._require("mask_token", ok, f"'auto' with baseline={self.baseline!r}")
        ok = self.max_masked is None or (self.baseline == "masked" and self.max_masked >= 1)
        self._require("max_masked", ok, "none, or at least 1 with baseline='masked'")
        self._require("positions", self.positions != (), "of at least one token")
        if self.positions != "answer":
            ok = self.multiply_by != "first_activation"
            self._require("multiply_by", ok, "'delta' or 'activation' at other positions")
            ok = self.masked_tokens == "prompt"
            self._require("masked_tokens", ok, "'prompt' at other positions")
            # Its rules are for rows, which are of the positions that predict.
            self._require("method", self.method != "relp", "another at other positions")

    def _require_one_pass(self) -> None:
        """Refuse what a score of one gradient does not read, or is not defined for."""
        with_it = f"with method={self.method!r}"
        ok = self.quadrature == "adaptive"
        self._require("quadrature", ok, f"left at 'adaptive', which is not read, {with_it}")
        if self.method == "relp":
            self._require("site", self.site == "post", f"'post' {with_it}")
        if self.method == "grad_drop":
            ok = self.objective != "logit_difference"
            self._require("objective", ok, f"another than 'logit_difference' {with_it}")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Section):
    """Which neurons count as knowledge neurons (KNs).

    Attributes:
        method: ``threshold`` (score > threshold * max score), ``top_k``, or ``percentile``.
        threshold, top_k, percentile: the value for the method.
        n_paraphrases: paraphrases attributed beside the prompt; the rest are held out.
        paraphrase_share: keep neurons found by more than this share of the prompts used.
        max_neurons: keep at most so many, by score.
    """

    method: Literal["threshold", "top_k", "percentile"] = "threshold"
    threshold: float = 0.1
    top_k: int = count(100)
    percentile: float = 99.8
    n_paraphrases: int = count(0, least=0)
    paraphrase_share: float = 0.5
    max_neurons: int = count(2000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("threshold", 0 <= self.threshold < 1, "in [0, 1)")
        self._require("percentile", 0 <= self.percentile < 100, "in [0, 100)")
        self._require("paraphrase_share", 0 <= self.paraphrase_share < 1, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TopologyConfig(Section):
    """The connection-weight graph and its H0 clustering.

    Attributes:
        input_weights: the row of a GLU model that ``w(a, b)`` reads: ``gate`` or ``up``.
        fold_norm: multiply W_in by the gain of the norm in front of the MLP.
        direction: ``forward``, W_out[a] . W_in[b]; ``reversed``, W_in[a] . W_out[b] (released,
            LLaMA layouts only).
        connections: which neurons are joined, and how strongly: those of ``adjacent`` layers by
            the weight w(a, b), as the paper has it; those of any two layers by w(a, b), as the
            ``residual`` stream joins them; or by their measured ``influence``, the share of b's
            activation that goes when a, in a lower layer, is suppressed.
        by_activation: multiply w(a, b) by the size of a's activation in the unchanged model.
        clustering: ``ntc`` (merge tree), ``released`` (the released procedure), or ``covering``:
            no graph, but groups grown from measured interactions until any one of them will do and
            all are missed; see ``dkn_engine/degeneracy/covering_groups.py``. Other settings of
            this section are not read then. Paraphrases that are used for finding neurons
            (``selection.n_paraphrases``) are used for finding groups too.
        spans: longer spans by ``shortest_path`` or by the ``released`` enumeration.
        max_span: most layers a distance crosses (None: no limit).
        min_component_size: smaller parts continue the larger part's life (condensed tree).
        condense: False gives raw branches.
        end: end of the filtration for a root: ``largest_merge`` of the forest, a ``radius``, or a
            ``quantile`` of the adjacent distances; ``end_value`` is the radius or quantile.
        min_persistence: tau_1; components need strictly more.
        min_persistence_kind: ``absolute``, or a ``quantile`` over components.
        allow_root: make roots candidates even in a connected forest.
        select: disjoint family by total ``persistence``, the ``leaf`` or the ``root`` nodes; or
            ``tree``: of all nodes of the merge tree (``condense`` is not read) the disjoint family
            that the filter prefers, chosen by measuring; see
            ``dkn_engine/degeneracy/tree_families.py``.
        scale: ``linear`` or ``log`` persistence in that total.
        max_candidates: q, the most persistent components that enter the subset lattice; with
            ``tree`` the most members of a family.
        max_component_size, max_families: with ``tree``, the most neurons of a node, and the most
            families of each number of members that are measured.
    """

    input_weights: Literal["gate", "up"] = "gate"
    fold_norm: bool = False
    direction: Literal["forward", "reversed"] = "forward"
    connections: Literal["adjacent", "residual", "influence"] = "adjacent"
    by_activation: bool = False
    clustering: Literal["ntc", "released", "covering"] = "ntc"
    spans: Literal["shortest_path", "released"] = "shortest_path"
    max_span: int | None = count(None)
    min_component_size: int = count(2)
    condense: bool = True
    end: Literal["largest_merge", "radius", "quantile"] = "quantile"
    end_value: float | None = 0.6
    min_persistence: float = 0.0
    min_persistence_kind: Literal["absolute", "quantile"] = "absolute"
    allow_root: bool = True
    select: Literal["persistence", "leaf", "root", "tree"] = "leaf"
    scale: Literal["linear", "log"] = "linear"
    max_candidates: int = count(8)
    max_component_size: int = count(16)
    max_families: int = count(256)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("min_persistence", self.min_persistence >= 0, "0 or more")
        if self.end == "largest_merge":
            self._require("end_value", self.end_value is None, "None with end='largest_merge'")
        elif self.end == "radius":
            ok = self.end_value is not None and self.end_value > 0
            self._require("end_value", ok, "a positive radius with end='radius'")
        else:
            ok = self.end_value is not None and 0 < self.end_value <= 1
            self._require("end_value", ok, "in (0, 1] with end='quantile'")
        if self.clustering == "released" or self.spans == "released":
            ok = self.connections == "adjacent"
            self._require("connections", ok, "'adjacent' with the released clustering or spans")
        if self.clustering == "released":
            self._require("select", self.select != "tree", "not 'tree' with clustering='released'")
        if self.connections == "influence":  # measured, by no weights
            for name, plain in (("fold_norm", False), ("by_activation", False)):
                ok = getattr(self, name) is plain
                self._require(name, ok, "false with connections='influence'")


# No settings: families of more members are controlled on a sample of so many of their subsets.
CONTROL_EXACT = 5
CONTROL_SAMPLES = 1 << CONTROL_EXACT


@dataclass(frozen=True, kw_only=True)
class FilterConfig(Section):
    """The functional filter over the lattice of suppressed candidates, and its controls.

    Attributes:
        method: ``degenerate`` (section 2 of the design) or ``released``.
        min_alone: tau_2; each member, with the other members suppressed and everything else as it
            is, must keep this share of the clean probability.
        max_none: tau_3; all suppressed must leave at most this share of the weakest member's.
            With tau_3 <= tau_2 members that act independently never pass: each alone would keep a
            share r >= tau_2, all suppressed would leave r of the weakest, so r <= tau_3 too.
        released_max_drop: the released filter keeps a cluster whose own suppression lowers the
            probability by less than this share.
        require_rank_1, min_probability: what counts as known by the model.
        exact_limit: most candidates for all 2**q subsets; above, ``n_samples`` seeded ones.
        suppress_value: ``zero`` or ``mean`` (over the reference prompts).
        positions: where suppression acts; see ``dkn_engine.answer_probability``.
        n_random: draws of random sets matched by size and layer, none of them knowledge neurons of
            the fact (as long as the layer has others).
        n_regrouped: draws of the control that says what chance finds: the fact's own knowledge
            neurons in groups of the same sizes and layers, put through the same filter. The
            p-value of a family is never below 1 / (1 + draws). A fact without a family has p = 1,
            and a quarter of the draws (with ``control_precision=0`` all, and a p-value from them).
            0: none; nor is there any with ``method="released"``, or of fewer than two candidates.
        n_random_searches: with ``topology.clustering="covering"`` that control repeats the search
            so often instead, each time among as many other neurons of the same layers, at the
            search's own cost. 0: none.
        n_unrelated: unrelated facts on which the family is suppressed too.
        control_precision: controls are measured on as few random draws and subsets of the family as
            it takes for the 95% interval of a mean drop to be this much on either side, at most
            on ``n_random`` draws and 32 subsets (0.02 a fact is 0.005, half of the last digit that
            is printed, in a mean over 16). 0: on all draws, each with all subsets (of a family of
            more than five members with 32 of them). The family itself is measured on all.
        fill_reference: with fewer than eight facts of use, take packaged English ones too for
            unrelated facts and mean activations (results and summary count them); without, they are
            of the run's own facts, and there is no control with means of fewer than eight.
    """

    method: Literal["degenerate", "released"] = "degenerate"
    min_alone: float = 0.7
    max_none: float = 0.7
    released_max_drop: float = 0.05
    require_rank_1: bool = True
    min_probability: float = 0.05
    exact_limit: int = 12
    n_samples: int = count(4096, least=0)
    suppress_value: Literal["zero", "mean"] = "zero"
    positions: Positions = "answer"
    n_random: int = count(5, least=0)
    n_regrouped: int = count(8, least=0)
    n_random_searches: int = count(1, least=0)
    n_unrelated: int = count(3, least=0)
    control_precision: float = 0.02
    fill_reference: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_alone", "max_none", "released_max_drop", "min_probability"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("control_precision", 0 <= self.control_precision < 1, "in [0, 1)")
        self._require("exact_limit", 1 <= self.exact_limit <= 20, "from 1 to 20")


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """All choices of a run.

    ``Config()`` holds defaults of our own, since the paper gives no tau. They were chosen on facts
    of the demo model that are in no packaged set (``benchmarks/science/defaults.py`` states
    candidates and rule, ``benchmarks/results/defaults.csv`` has the figures). Other models may
    want others.

    Attributes:
        facts, attribution, selection, topology, filter: the settings of each stage.
        facts_per_chunk: facts that are computed together, and whose results are written at once.
        seed: of every random choice; each has numbers of its own.
    """

    facts: FactsConfig = field(default_factory=FactsConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    facts_per_chunk: int = count(8)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attribution.positions != "answer":
            raise UserError(
                "attribution.positions must be 'answer' for DKNs, whose suppressions act there, "
                f"others are for dkn_engine.attribute; got {self.attribution.positions!r}"
            )
        measured = {"select": "tree", "clustering": "covering"}
        for name, value in measured.items():
            if getattr(self.topology, name) == value and self.filter.method != "degenerate":
                raise UserError(
                    f"filter.method must be 'degenerate' with topology.{name}={value!r}; "
                    f"got {self.filter.method!r}"
                )
        tokens = self.facts.teacher_forced or self.facts.continuation == "clean"
        if self.topology.clustering == "covering" and not tokens:
            raise UserError(
                "facts.continuation must be 'clean' with topology.clustering='covering', whose "
                f"gradients need fixed tokens (or facts.teacher_forced true); "
                f"got {self.facts.continuation!r}"
            )

    @classmethod
    def paper(cls) -> Config:
        """The paper's values where it gives them (KN threshold 0.2; tau_1, tau_2 unpublished)."""
        return cls(selection=SelectionConfig(threshold=0.2))

    @classmethod
    def released(cls) -> Config:
        """The published code's departures, each a named option (see the design's section 5)."""
        return cls(
            facts=FactsConfig(
                blank="literal",
                answer_space=False,
                answer_special_tokens=True,
                teacher_forced=False,
                continuation="edited_text",
                repeat_first_token=True,
            ),
            attribution=AttributionConfig(
                site="pre",
                masked_tokens="all",
                mask_token="end_of_text",
                quadrature="riemann_left",
                n_steps=20,
                multiply_by="first_activation",
                answer_tokens="sum",
            ),
            selection=SelectionConfig(threshold=0.2),
            topology=TopologyConfig(
                direction="reversed",
                clustering="released",
                spans="released",
                max_span=3,
                end="quantile",
                end_value=0.2,
            ),
            filter=FilterConfig(method="released"),
        )

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read a ``.toml`` or ``.json`` file with the sections of this class as tables."""
        data = read_table(path)
        try:
            return cls.from_dict(data)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def set(self, key: str | Mapping[str, Any], value: Any = None) -> Config:
        """The configuration with one setting changed, or several that are only allowed together.

        Args:
            key: as ``--set`` has it, such as ``"selection.threshold"``; or values by such keys.
            value: of the one setting.

        Raises:
            UserError: there is no such setting, or the value is not allowed.

        Example:
            >>> from dkn_engine import Config
            >>> config = Config().set("selection.threshold", 0.2)
            >>> config.selection.threshold
            0.2
            >>> fixed = {"attribution.quadrature": "trapezoid", "attribution.n_steps": 20}
            >>> config.set(fixed).attribution.n_steps  # only allowed together
            20
        """
        data = self.to_dict()
        for name, one in key.items() if isinstance(key, Mapping) else [(key, value)]:
            *sections, last = name.split(".")
            node: Any = data
            for section in sections:
                node = node.get(section) if isinstance(node, dict) else None
            if not isinstance(node, dict) or isinstance(node.get(last, {}), dict):
                known = dotted_keys(data)
                raise UserError(f"there is no setting {name!r}{did_you_mean(name, known)}")
            node[last] = one
        return Config.from_dict(data)

    @property
    def hash(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        text = json.dumps(self.written(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
