"""From a torch module to the one graph that everything else works on."""
