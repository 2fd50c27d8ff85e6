"""Examples of every command, shown at the end of its help."""

EXAMPLES = {
    "": """\
  dkn-engine find --model demo --facts demo --limit 8
  dkn-engine find --model demo --prompt "The capital of Italy is" --answer Rome
  dkn-engine report runs/demo-demo
  dkn-engine analyze all --models demo --facts demo
  dkn-engine settings
""",
    "find": """\
  dkn-engine find --model demo --prompt "The capital of Italy is" --answer Rome
  dkn-engine find --model demo --facts demo --out runs/first
  dkn-engine find --model gpt2 --facts facts.csv --limit 100
  dkn-engine find --model demo --facts demo --out runs/paper --preset paper \\
      --set filter.n_random=50 --set topology.end_value=0.2

A run that was stopped goes on where it was: give the same command again.
Exit code 3: the run is complete, and the model knows none of the facts.
""",
    "merge": """\
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/0 --shard 0/2
  dkn-engine find --model gpt2 --facts facts.jsonl --out runs/1 --shard 1/2
  dkn-engine merge runs/whole runs/0 runs/1
""",
    "analyze": """\
  dkn-engine analyze all --models demo --facts demo
  dkn-engine analyze robustness --model demo --facts demo --out runs/a
""",
    "all": """\
  dkn-engine analyze all --models demo --facts demo
  dkn-engine analyze all --models gpt2 gpt2-medium --facts a.jsonl b.csv \\
      --analyses robustness fact-check --out runs/two --workers 2
""",
    "evolvability": """\
  dkn-engine analyze evolvability --model demo --facts demo --out runs/demo
  dkn-engine analyze evolvability --model demo --facts demo --out runs/own \\
      --new-facts new.jsonl --set evolvability.steps=40
""",
    "clusterers": """\
  dkn-engine analyze clusterers --model demo --facts demo
  dkn-engine analyze clusterers --model demo --facts demo --method hdbscan
""",
    "report": """\
  dkn-engine report runs/demo
  dkn-engine report runs/demo --all --fact-figures 33
""",
    "bench": """\
  dkn-engine bench --list
  dkn-engine bench --table
""",
    "info": """\
  dkn-engine info
  dkn-engine info runs/demo --json
""",
    "settings": """\
  dkn-engine settings topology
  dkn-engine settings --toml > config.toml
  dkn-engine find --model demo --facts demo --config config.toml
""",
    "completion": """\
  source <(dkn-engine completion bash)      # in ~/.bashrc
  source <(dkn-engine completion zsh)       # in ~/.zshrc, behind compinit
""",
}
# Of an analysis that has no examples of its own; to be filled with its name.
ANALYSIS = """\
  dkn-engine analyze {0} --model demo --facts demo
  dkn-engine analyze {0} --model demo --facts demo --out runs/a --draws 5
"""


def examples(name: str, *, analysis: bool = False) -> str:
    """The end of a command's help."""
    text = EXAMPLES[name] if name in EXAMPLES or not analysis else ANALYSIS.format(name)
    return f"examples:\n{text}"
