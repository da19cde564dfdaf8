"""Penn Treebank (chapter 7): a recurrent network over words."""
