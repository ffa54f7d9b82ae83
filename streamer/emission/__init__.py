"""Zero to many outputs per event: labels per step become symbols, and an utterance's symbols its transcript. Pure arithmetic."""
