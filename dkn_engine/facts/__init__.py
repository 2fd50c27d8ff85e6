"""Facts come in: files of several formats, read lazily, broken entries told one by one."""

from dkn_engine.facts.json_records import FactProblem
from dkn_engine.facts.load import Format, iter_facts, load_facts
from dkn_engine.facts.write import write_facts

__all__ = ["FactProblem", "Format", "iter_facts", "load_facts", "write_facts"]
