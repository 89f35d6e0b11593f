"""What can be varied, one file each, and the reference training (`reference.py`).

To add a scenario, write a file here; nothing else changes. See `perftool/scenario.py` for the contract.
"""
