"""Classes: trained by cross-entropy, judged by accuracy."""
