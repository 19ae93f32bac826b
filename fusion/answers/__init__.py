"""From images to answers: CLIP, prototypes, label spaces, and the predictor that runs them in one process."""
