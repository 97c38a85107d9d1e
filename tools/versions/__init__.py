"""The parts of compare_versions.py: its cases, how they are run, and what differs between two workdirs."""
