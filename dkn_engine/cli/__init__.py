"""The program ``dkn-engine``: its options, and what each command does with them."""
