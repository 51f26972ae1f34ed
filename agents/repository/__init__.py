"""The repository: deduplicated chunks in packs, trees and points over them, and everything that keeps and finds them."""
