"""Completions by running vLLM servers, over their documented endpoints alone.

- `client.py`: a server's endpoints over HTTP
- `vllm_server.py`: one vLLM server: what it is, which adapters it has, what it completes
- `request.py`: what a completion is asked with, and what its answer says
- `contact.py`: whether servers are those that a job needs, before a model is loaded
- `probe.py`: whether a server draws from the distribution of the model that is loaded here
- `handover.py`: the adapter of a model, written for the servers under a name of its own whenever it changes
- `spread.py`: completions spread over servers, of which some may be lost
- `kept.py`: completions kept until a checkpoint has what was learned from them
- `mismatch.py`: log-probabilities of an engine beside those of the trainer
- `check.py`: what is wrong with the section `engine`
"""
