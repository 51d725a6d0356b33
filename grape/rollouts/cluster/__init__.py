"""Rollouts over several machines on Ray: simulator actors and policy actors behind the interfaces of one machine.

The engine, the job queue and the run folder stay in the process of the command; see docs/clusters.md.
"""
