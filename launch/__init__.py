"""How runs start: `local` here, `tpu` on Cloud TPU, `gke` on Kubernetes, `slurm`; and `dataflow`
for the corpus. What they share is in `spec`, which describes a launch."""
