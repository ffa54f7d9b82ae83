"""Learning to write one sequence for another: pairs, their losses and metrics, for encoder-decoders and for CTC."""
