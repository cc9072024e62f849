"""Chains of stages and commands: a YAML file of named steps, run in order, each only where something has changed.

file.py      the file: its steps, and what they refer to
composed.py  a step as a typed job, as it will be run
known.py     the same with what stands for a run that is not there yet, so that it can be checked
check.py     everything that can be known before the first step starts
decision.py  whether a step runs, goes on or is skipped, and why
step.py      one step, in this process
chain.py     the steps in order, each in a process of its own, and the record of the chain
"""
