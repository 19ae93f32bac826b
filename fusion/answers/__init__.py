"""From images to answers: decoding, CLIP, prototypes, label spaces, and the predictor that runs them in one process."""
