"""A real encoder out of a package: BERT for reaction SMILES (rxnfp 0.1.0, MIT).

Schwaller et al., Mapping the space of chemical reactions (2021, arXiv 2012.06051).

12 layers, d 256, F 512. Its weights are a pickle, of which nothing but tensors is read.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

import dkn_engine as dkn

INSTALL = "pip install --no-deps rxnfp==0.1.0"
_FOLDER = Path("models", "transformers", "bert_pretrained")
# An atom in brackets, a halogen of two letters, an arrow, a ring closure of two digits, a letter.
_TOKEN = r"\[[^\]]+\]|Br|Cl|>>|%[0-9]{2}|."

# What goes in, and what comes out: ester, amide, Suzuki coupling, reductions, protections, ...
REACTIONS = {
    "ester": "CC(=O)O.OCCc1ccccc1>>CC(=O)OCCc1ccccc1",
    "amide": "O=C(Cl)c1ccccc1.NCC1CCCCC1>>O=C(NCC1CCCCC1)c1ccccc1",
    "suzuki": "OB(O)c1ccccc1.Brc1ccc(C#N)cc1>>N#Cc1ccc(-c2ccccc2)cc1",
    "nitro": "O=[N+]([O-])c1ccc(Cl)cc1>>Nc1ccc(Cl)cc1",
    "ketone": "O=C(c1ccccc1)C1CCCCC1>>OC(c1ccccc1)C1CCCCC1",
    "hydrolysis": "COC(=O)c1ccc(F)cc1>>O=C(O)c1ccc(F)cc1",
    "boc": "CC(C)(C)OC(=O)NCc1ccccc1>>NCc1ccccc1",
    "ether": "Oc1ccc(C=O)cc1.BrCc1ccccc1>>O=Cc1ccc(OCc2ccccc2)cc1",
    "sulfonamide": "CS(=O)(=O)Cl.Nc1ccc(Br)cc1>>CS(=O)(=O)Nc1ccc(Br)cc1",
    "alkylation": "CN1CCNCC1.ClCc1ccncc1>>CN1CCN(Cc2ccncc2)CC1",
}


def package() -> Path | None:
    """The folder of the model in the installed package, which is not imported; None without it."""
    spec = importlib.util.find_spec("rxnfp")
    folders = (spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(f, _FOLDER) for f in folders if Path(f, _FOLDER).is_dir()), None)


def save_model(source: Path, folder: Path) -> Path:
    """The packaged model as a folder that ``dkn.load_model`` reads."""
    from transformers import BertConfig, BertForMaskedLM

    settings = json.loads((source / "config.json").read_text("utf-8"))
    kept = {k: v for k, v in settings.items() if hasattr(BertConfig(), k)}
    model: Any = BertForMaskedLM(BertConfig(**kept))
    weights = torch.load(source / "pytorch_model.bin", weights_only=True, map_location="cpu")
    missing, _ = model.load_state_dict(weights, strict=False)
    # The bias of the decoder is tied to the one that is there.
    assert set(missing) <= {"cls.predictions.decoder.bias", "bert.embeddings.position_ids"}
    model.eval().save_pretrained(folder)
    smiles_tokenizer(source / "vocab.txt").save_pretrained(folder)
    return folder


def smiles_tokenizer(vocabulary: Path) -> Any:
    """A token an atom, a bond, a bracket or a digit, between [CLS] and [SEP]."""
    from transformers import PreTrainedTokenizerFast

    words = vocabulary.read_text("utf-8").split("\n")
    vocab = {word: i for i, word in enumerate(words) if word}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_TOKEN), "isolated")
    made.add_special_tokens([AddedToken(t, normalized=False) for t in ("[MASK]", "[CLS]", "[SEP]")])
    marks = [(t, vocab[t]) for t in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=marks
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, mask_token="[MASK]", unk_token="[UNK]", **names
    )


def facts(tokenizer: Any) -> list[dkn.Fact]:
    """Each reaction with one token of its product masked: the first that is a heteroatom."""
    found = []
    for name, reaction in REACTIONS.items():
        words = tokenizer.tokenize(reaction)
        arrow = words.index(">>")
        at = next(i for i in range(arrow + 1, len(words)) if words[i] in {"O", "N", "S"})
        prompt = "".join([*words[:at], "[MASK]", *words[at + 1 :]])
        found.append(dkn.Fact(name, prompt, words[at], relation="product"))
    return found
