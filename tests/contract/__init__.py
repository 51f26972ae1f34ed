"""What every view, platform, store and source keeps to: one suite each, which all of them pass."""
