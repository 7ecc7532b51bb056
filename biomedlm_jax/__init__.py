"""BioMedLM in JAX. Read the files in this order; imports point up the list, a test sees to it.

entry.py                     errors for people, outputs that are whole
config.py                    what a run is made of
layout.py                    the alphabet of axes, and where each lives on the mesh
mesh.py                      the devices, and what divides over them
kernels/                     dropout, attention
model/layers.py, gpt.py      the decoder
objective.py                 the loss
optimizer.py                 the learning rate, clipping, AdamW
step.py                      one update: everything above under one shard_map
pipeline/                    the vocabulary, the token store, seqio tasks, the batch loader
scoring/                     how good answers are, beside published numbers
checkpoint.py                what is kept
generate.py                  text, many requests at once
hf/config.py to read.py      Hugging Face's settings, names and files
start.py                     weights from anywhere
held_out.py                  bits per byte of unseen text
metrics.py                   what people look at
train.py                     the loop
hf/                          the way to Hugging Face
sample.py                    text from the command line
serving/, serve.py           a completion server
main.py                      the command line
compilers/                   programs for chips that are not here, and what they take
planning/, plan.py           will it fit, how fast, what does it cost
"""

import os

# Files on gs:// are read through gcsfs: TensorFlow, which etils would prefer, takes long to import
# and has errors of its own. gcsfs is not to keep what it has listed, for others write there too,
# nor to ask at each look what kind of bucket it is, and say so where it may not know.
os.environ.setdefault("EPATH_USE_TF", "false")
os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
