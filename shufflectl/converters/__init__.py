"""From a trained module to files: capture, rewrites, and one emitter a format."""
