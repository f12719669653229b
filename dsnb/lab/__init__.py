"""The laboratory: everything that measures, trains and reruns; the core never imports it."""
