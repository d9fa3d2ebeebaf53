"""Where text comes from: one module a source. `stages.sources.registry` lists them."""
