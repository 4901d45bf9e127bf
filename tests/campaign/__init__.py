"""A campaign against the promises of docs/trust.md: mutated files, random kills, orders of patches, many edits.

python -m tests.campaign --help
"""
