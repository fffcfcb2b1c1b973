"""Side by side with other libraries: `make bench`. What is measured, and how, is told in docs/explanation/benchmarks.md."""
