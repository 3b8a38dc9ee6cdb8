"""The commands behind the numbers in results/ and docs/; each starts as `python -m benchmarks.NAME`."""
