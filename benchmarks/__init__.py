"""The commands behind every figure in results/ and docs/."""
