"""The evidence: cases, the benchmark, the judge, metrics, results and the report page.

Imported by the studies and the doors; imports methods and everything below. It knows no study.
"""
