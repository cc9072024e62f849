"""From files to batches: what exactly the loss sees.

The way of a row of SFT, which `sets/sft.py` (`load_sft`) states as one line of named values:

    data.path
      → sets/section.py          the sources of each set
      → files/sources.py, readers.py, compressed.py    rows, each with its `file:line`
      → rows/formats.py, columns.py, turns.py          a `Conversation` each           (sets/items.py)
      → sets/split.py            `train` and the held-out sets, whole prompts at a time
      → encode/masking.py        token ids and labels: templates.py, rendering.py and supervision.py give the text and
                                 what of it carries loss, control_tokens.py and tokens.py the ids
      → encode/lengths.py        kept, cut or dropped
      → sets/encode_sets.py      each outcome recorded in sets/ledger.py; a data set for each set
      → batches/batching.py      tensors
      → views/                   and back to text, for `alignkit inspect`

Pairs go the same way through rows/preferences.py, encode/pair_lengths.py, sets/pairs.py and batches/pair_batching.py;
prompts end in sets/prompts.py; sets/streaming.py takes blocks of rows through the same functions as training goes.
"""
